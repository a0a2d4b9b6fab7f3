"""A rehearsal of an experiment: every run with its real network and objective, on a few small generated images.

Whatever can go wrong with names, networks, objectives, files and tables goes wrong there, before a GPU-hour is spent;
only the numbers mean nothing. Its results lie in a folder of their own.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from distillery.experiment.experiment import Experiment
from distillery.experiment.ledger import digest_of
from distillery.experiment.schema.block import LONGEST_NAME
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import NO_CLASSES, OWN_CLASSES, RunConfig
from distillery.experiment.schema.objective import PLAIN, Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.spec import RUN_PREFIX

# Enough for two steps an epoch, and for two epochs: what acts when an epoch begins acts twice.
BATCH = 8
TRAINING_IMAGES = 2 * BATCH
EPOCHS = 2
# Networks for larger images see them at this size; the smallest at which all known ones still have pixels at the end.
SIZE = 64
# Of a network with `img_size`, how many pixels a side one of its patches has.
PATCH = re.compile(r"patch(\d+)")
# Names that end in a number of pixels, and LeViT's, whose number is a width: these networks take one size only.
FIXED_SIZE = re.compile(r"_([2-9]\d\d)$")
LEVITS_SIZE = 224
# Networks that were hardly trained answer wildly; at the recipes' rates their students would not stay finite.
LEARNING_RATE = 1e-3
# Where datasets.yaml does not say how many classes a data set has.
CLASSES = 10


def rehearsed(experiment: Experiment) -> Experiment:
    """The experiment with every recipe shrunk to a few steps, one seed, and generated images.

    Weights of files and of libraries are not asked for: a network that is trained for it stands in.
    """
    runs: dict[str, RunConfig] = {}
    recipes: dict[str, Recipe] = {}
    for run, config in ((run, _of_few_patches(config)) for run, config in experiment.config.runs.items()):
        elsewhere = config.weights is not None and not config.weights.startswith(RUN_PREFIX)
        few = experiment.labels(run)
        labels = {} if few is None else {"labels": few.labels and TRAINING_IMAGES // 2}
        runs[run] = config.model_copy(update={"seeds": None, "nest": None, "prefix": None, "ignore": (), **labels})
        if config.classes is not None and (elsewhere or config.classes != NO_CLASSES):
            # A stand-in is trained on the very images; generated classes of other experiments have the same names.
            runs[run] = runs[run].model_copy(update={"classes": None if elsewhere else OWN_CLASSES})
        if config.recipe is not None:
            recipes[run] = rehearsed_recipe(experiment.recipes[run], config.objective, config)
        elif elsewhere:
            plain = _plain_recipe(experiment.preprocesses.get(run), config.model)
            runs[run] = runs[run].model_copy(update={"weights": None, "recipe": "stand-in"})
            recipes[run] = rehearsed_recipe(plain, config.objective, config)
        if elsewhere and config.recipe is not None:
            name = _stand_in(config)
            plain = _plain_recipe(experiment.recipes[run].preprocess, config.model)
            runs[name] = RunConfig.model_validate(
                {"model": config.model, "model_args": config.model_args, "recipe": "stand-in"}
            )
            recipes[name] = rehearsed_recipe(plain, PLAIN, config)
            runs[run] = runs[run].model_copy(update={"weights": f"{RUN_PREFIX}{name}"})
    return replace(
        experiment,
        config=experiment.config.model_copy(update={"runs": runs, "seeds": (0,)}),
        dataset=rehearsed_dataset(experiment.config.dataset, experiment.dataset),
        recipes=recipes,
        preprocesses={
            run: Preprocess.model_validate(_small_preprocess(kept, _told_size(runs[run])))
            for run, kept in experiment.preprocesses.items()
            if run not in recipes
        },
        rehearsal=True,
        _specs={},
    )


def rehearsed_dataset(name: str, dataset: Dataset) -> Dataset:
    """Made-up images of as many classes as the data set has."""
    generated = {"classes": dataset.classes or CLASSES, "images": TRAINING_IMAGES, "size": SIZE}
    return Dataset.model_validate({"path": f"generated/{name}", "generated": generated})


def rehearsed_recipe(recipe: Recipe, objective: Objective, config: RunConfig) -> Recipe:
    """A recipe as a rehearsal follows it: all its parts, for a few steps."""
    body = recipe.model_dump(exclude_unset=True)
    batch = BATCH
    for term in objective.terms().values():
        batch = term.rehearsal_batch(batch)
    body |= {"epochs": EPOCHS, "batch": batch}
    body["optimizer"]["lr"] = LEARNING_RATE
    body["schedule"] = _short_schedule(body["schedule"])
    fixed = FIXED_SIZE.search(config.model) or "img_size" in config.model_args
    body["preprocess"] = _small_preprocess(recipe.preprocess, _told_size(config) or (None if fixed else SIZE))
    # Half precision needs a GPU; bfloat16 takes the same paths on a CPU.
    if recipe.precision == "16-mixed":
        body["precision"] = "bf16-mixed"
    return Recipe.model_validate(body)


def _short_schedule(schedule: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = {"drops": [1], "every": 1, "restart_every": 1, "cooldown": 1, "min_lr": LEARNING_RATE / 100}
    body: dict[str, Any] = {
        key: short.get(key, value) if value is not None else None for key, value in schedule.items()
    }
    if body.get("warmup") is not None:
        short = {"epochs": 1, "lr": LEARNING_RATE / 10}
        body["warmup"] = {key: short.get(key, value) for key, value in body["warmup"].items()}
    return body


def _of_few_patches(config: RunConfig) -> RunConfig:
    """A network that is told its size, for as many whole patches as the small images have."""
    size, patch = _told_size(config), PATCH.search(config.model)
    if patch is None or size is None or not int(patch[1]) <= SIZE < size:
        return config
    return config.model_copy(update={"model_args": {**config.model_args, "img_size": SIZE - SIZE % int(patch[1])}})


def _told_size(config: RunConfig) -> int | None:
    size = config.model_args.get("img_size")
    return size if isinstance(size, int) else None


def _small_preprocess(preprocess: Preprocess, size: int | None) -> dict[str, Any]:
    body, size = preprocess.model_dump(exclude_unset=True), min(preprocess.size, size or preprocess.size)
    if preprocess.resize is not None:
        body["resize"] = round(preprocess.resize * size / preprocess.size)
    return body | {"size": size}


def _plain_recipe(preprocess: Preprocess | None, model: str) -> Recipe:
    """A recipe for a network that stands in for published weights, which may say themselves how images are prepared."""
    fixed = FIXED_SIZE.search(model)
    size = SIZE if fixed is None else LEVITS_SIZE if family(model) == "levit" else int(fixed[1])
    return Recipe.model_validate(
        {
            "epochs": EPOCHS,
            "batch": BATCH,
            "optimizer": {"name": "sgd", "lr": LEARNING_RATE},
            "schedule": {"name": "constant"},
            "preprocess": {"size": size} if preprocess is None else preprocess.model_dump(),
        }
    )


def _stand_in(config: RunConfig) -> str:
    """A plain name for a network and the weights that it begins with."""
    arguments = [f"{key}-{value}" for key, value in config.model_args.items()]
    name = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(["stand-in", config.model, *arguments, str(config.weights)]))
    return name if len(name) <= LONGEST_NAME else f"{name[:180]}-{digest_of(name)}"


def family(model: str) -> str:
    """The kind of network, by its name: resnet of torchvision:resnet50, cifar_resnet of cifar_resnet20."""
    found = re.match(r"(?:cifar_|mgd_)?[a-z]+(?:_v\d)?", model.rpartition(":")[2].removeprefix("tf_"))
    return found[0] if found else model


def representatives(experiments: Iterable[Experiment]) -> list[tuple[str, str]]:
    """Runs (experiment, run) of every recipe, without and with a teacher, live and stored, and of both ways to start.

    Those that need the fewest other networks. Terms and families of networks are tried without a rehearsal.
    """
    runs = [(experiment, run) for experiment in experiments for run in experiment.trained()]
    chosen: dict[tuple[str, str], None] = {}
    seen: set[object] = set()
    for experiment, run in sorted(runs, key=lambda pair: len(pair[0].family([pair[1]]))):
        config = experiment.config.runs[run]
        start = "from weights" if config.weights is not None else "from scratch"
        stored = any(one.answers is not None for one in experiment.spec(run).by_teacher())
        new = {(config.recipe, config.teacher is not None, stored), start} - seen
        if new:
            seen |= new
            chosen[experiment.name, run] = None
    return list(chosen)
