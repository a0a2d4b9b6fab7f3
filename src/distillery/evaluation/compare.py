"""Two runs side by side: `distillery compare`."""

from pathlib import Path

from distillery.data.manifest import load_manifest
from distillery.evaluation.predict import predict_run, validation_labels
from distillery.experiment import Experiment
from distillery.paths import dataset_folder
from distillery.reporting import comparison


def compare_runs(
    run: tuple[Experiment, str], baseline: tuple[Experiment, str], results: Path, workers: int
) -> comparison.Comparison:
    """Say how a run and its baseline differ: specs, scores paired by seed, images, classes.

    Raises:
        UserError: they share no seed or no images, or something of theirs is missing.
    """
    ours, theirs = comparison.Side(*run), comparison.Side(*baseline)
    seeds = comparison.common_seeds(ours, theirs)
    measured = comparison.read_both(ours, theirs, seeds, results)
    experiment = ours.experiment
    manifest = load_manifest(dataset_folder(results, experiment.config.dataset))
    predicted = {}
    for seed in seeds:
        first, second = (
            predict_run(side.experiment, side.run, seed, results, manifest, workers) for side in (ours, theirs)
        )
        predicted[seed] = first, second
    labels = validation_labels(experiment, results, manifest)
    return comparison.Comparison(
        ours.name,
        theirs.name,
        seeds,
        comparison.compare_specs(ours, theirs, seeds[0]),
        comparison.compare_metrics(measured, seeds),
        comparison.compare_images(labels, predicted),
        comparison.compare_classes(manifest.classes, labels, predicted),
    )
