"""What `distillery check` looks at before anything is paid for: names, sizes, weights, and what runs will need."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from distillery.errors import located
from distillery.experiment import Experiment
from distillery.experiment.address import parse_address
from distillery.experiment.checks import large_memories
from distillery.experiment.plugins import is_plugin
from distillery.experiment.schema.labels import FewLabels, LabelList
from distillery.experiment.schema.objective import (
    STAGEWISE,
    EveryStageOptions,
    FitNetOptions,
    OFAOptions,
    USKDOptions,
)
from distillery.experiment.schema.recipe import AdamW, Optimizer, Sgd
from distillery.experiment.stages import chosen_stage, distilled_stages, projected_stages
from distillery.models.facts import Network, known, own_stage_count, paired_stage_count, stage_count
from distillery.models.pretrained.files import check_file
from distillery.training.forecast import Forecast


def check_experiment(experiment: Experiment, forecast: Forecast) -> None:
    """See that an experiment's models, their arguments, optimizers, weights, labels and sizes exist and fit.

    What needs torch imports it where nothing else will do.

    Raises:
        UserError: something does not.
    """
    lists: set[str] = set()
    for run, line in experiment.config.runs.items():
        with located(experiment.where(run)):
            forecast.network(experiment.spec(run))
            if run in experiment.recipes:
                _check_optimizer(experiment.recipes[run].optimizer)
            spec = experiment.spec(run)
            check_file(spec.weights_file)
            if spec.classes is not None and spec.classes_file is not None:
                from distillery.models.pretrained.classes import weights_classes

                weights_classes(spec.classes, {})
            if spec.labels is not None and forecast.labelled:
                _check_labels(spec.labels, forecast, lists)
            if any(is_plugin(options.implementation) for options in line.objective.terms().values()):
                from distillery.distill.objective import check_names

                check_names(line.objective)
    for run in experiment.config.runs:
        spec = experiment.spec(run)
        # Those that are trained are tried in both modes.
        if spec.prepared_for is not None and (spec.recipe is None or run in experiment.teachers):
            with located(experiment.where(run)):
                forecast.network(spec, spec.prepared_for.size)
    check_stages(experiment)


def check_stages(experiment: Experiment) -> None:
    """Check that the stages which an experiment's runs name are there, before anything is trained.

    Raises:
        UserError: one is not; the line names the run and the key.
    """

    def network(run: str) -> Network:
        config = experiment.config.runs[run]
        return Network.named(config.model, 2, config.model_args)

    for run, recipe in experiment.recipes.items():
        objective = experiment.config.runs[run].objective
        is_paired = objective.needs().teacher & STAGEWISE
        for name, options in objective.terms().items():
            teacher = options.teacher or experiment.teacher(run)
            ignored = frozenset(options.ignore) if isinstance(options, EveryStageOptions) else frozenset()
            stage = options.stage if isinstance(options, FitNetOptions | USKDOptions) else None
            projects = isinstance(options, OFAOptions) and (options.stages or isinstance(options.eps, tuple))
            if not ignored and stage is None and not projects:
                continue
            student, size = network(run), recipe.preprocess.size
            with located(experiment.where(run)):
                if isinstance(options, OFAOptions):
                    projected_stages(own_stage_count(student, size), options.stages, options.eps)
                    continue
                # Where nothing is taken of the teacher's stages, all of the student's are.
                if teacher is not None and is_paired:
                    count = paired_stage_count(network(teacher), student, size)
                else:
                    count = stage_count(student, size)
                distilled_stages(count, ignored, name)
                if stage is not None:
                    chosen_stage(count, stage, name)


def _check_labels(few: FewLabels, forecast: Forecast, lists: set[str]) -> None:
    """See that there are so many labels, or the images of a list; of one that lies here, once images are prepared."""
    if not isinstance(few.labels, LabelList):
        few.count(forecast.labelled)
    elif few.labels.list not in lists and forecast.manifest is not None and parse_address(few.labels.list) is None:
        from distillery.data.arrow import ArrowImages
        from distillery.data.labels import listed_images

        images = ArrowImages(forecast.folder, forecast.manifest, "train")
        listed_images(images, len(images), Path(few.labels.list).expanduser())
        lists.add(few.labels.list)


def _check_optimizer(config: Optimizer) -> None:
    """Try an optimizer; torch's own take whatever the schema lets through."""
    if not isinstance(config, Sgd | AdamW):
        # What some of timm's optimizers need.
        packages = [name for name in ("apex", "bitsandbytes") if find_spec(name) is not None]
        known(["optimizer", config.model_dump(mode="json"), *packages], lambda: _tried(config))


def _tried(config: Optimizer) -> int:
    from distillery.training.optim import check_optimizer

    check_optimizer(config)
    return 1


def list_runs(experiment: Experiment) -> list[dict[str, Any]]:
    """An experiment's runs and seeds, each with its teacher, model and digest."""
    return [
        {
            "run": run,
            "seed": seed,
            "teacher": " + ".join(experiment.teachers_of(run)),
            "model": experiment.config.runs[run].model,
            "digest": experiment.spec(run, seed).digest,
        }
        for run, seed in experiment.members()
    ]


def notes(experiment: Experiment, forecast: Forecast) -> Iterator[str]:
    """What runs will need of this machine, what is large of it, and what banks hold and save."""
    yield forecast.line()
    for note in large_memories(experiment):
        yield f"note: {note}"
    for bank in forecast.banks:
        yield bank.line()
