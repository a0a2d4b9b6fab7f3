"""From official archives, and from folders, to a trained and measured network."""

import json

import pytest

from distillery.data.prepare import prepare_dataset
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.experiment.loading import load_dataset
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

EXPERIMENT = "experiment: {dataset: published, runs: {small: {model: cifar_resnet8, recipe: two-steps}}}\n"
RECIPE = """
epochs: 1
batch: 6
optimizer: {name: sgd, lr: 0.05}
schedule: {name: constant}
preprocess: {size: 16, resize: 18}
augment: [{name: random_resized_crop}, {name: horizontal_flip}]
"""


@pytest.fixture
def forms(request, tmp_path):
    """A data set as its archive or archives, and as folders."""
    made = request.getfixturevalue(request.param)
    if request.param == "imagenet":
        return made.tars(), made.folders()
    made = made(tmp_path) if request.param == "cifar" else made
    return made.archive(), made.unpacked()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forms", "layout"),
    [("imagenet", "imagenet"), ("cub", "cub200"), ("cifar", "cifar"), ("tiny_imagenet", "tiny-imagenet")],
    indirect=["forms"],
)
def test_two_steps_and_an_evaluation_from_archives_and_from_folders(forms, layout, tmp_path):
    results = []
    for number, path in enumerate(forms):
        place = tmp_path / f"place{number}"
        (place / "config" / "recipes").mkdir(parents=True)
        (place / "config" / "experiment.yaml").write_text(EXPERIMENT)
        (place / "config" / "recipes" / "two-steps.yaml").write_text(RECIPE)
        datasets = place / "config" / "datasets.yaml"
        datasets.write_text(f"published: {{path: {path}, layout: {layout}, classes: 3}}\n")
        output = place / "results" / "datasets" / "published"
        manifest = prepare_dataset("published", load_dataset(datasets, "published"), output, 1)
        assert manifest.splits["train"].images // 6 == 2
        experiment = load_experiment(place / "config" / "experiment.yaml")
        job = Job(experiment, "small", 0, place / "results", Machine(workers=0, threads=1))
        make_run(job)
        metrics = evaluate_run(experiment, "small", 0, place / "results", workers=0)
        assert 0 <= metrics["top1"] <= 100
        assert json.loads((job.folder / "metrics.json").read_text())["top1"] == metrics["top1"]
        results.append(
            {file.name: file.read_bytes() for file in [*output.iterdir(), job.folder / "weights.safetensors"]}
        )
    assert results[0] == results[1]
