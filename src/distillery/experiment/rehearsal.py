"""A rehearsal of the experiments: every run with its real networks and objective, on a few small generated images.

The rehearsal is a working folder of its own, with a config/ that says what is rehearsed and a results/ that is never
mixed with real results. Whatever can go wrong with names, networks, objectives, files and tables goes wrong there,
before a GPU-hour is spent; only the numbers mean nothing.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from distillery.atomic import write_text
from distillery.experiment.resolving import RUN_PREFIX, Experiment
from distillery.experiment.schema.experiment import RunConfig
from distillery.experiment.schema.objective import CrossEntropyOptions, Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe

# Enough for two steps an epoch, and for two epochs: what acts when an epoch begins acts twice.
BATCH = 8
TRAINING_IMAGES = 2 * BATCH
EPOCHS = 2
# Networks for larger images see them at this size; the smallest at which all known ones still have pixels at the end.
SIZE = 64
# Names that end in a number of pixels, and LeViT's, whose number is a width: these networks take one size only.
FIXED_SIZE = re.compile(r"_[2-9]\d\d$")
# Networks that were hardly trained answer wildly; at the recipes' rates their students would not stay finite.
LEARNING_RATE = 1e-3

# Where datasets.yaml does not say how many classes a data set has.
CLASSES = 10
_HEADER = "# Written by a rehearsal; changes are lost. The experiments themselves lie in the project's config/.\n"


def family(model: str) -> str:
    """The kind of network that a name tells: resnet of torchvision:resnet50, cifar_resnet of cifar_resnet20."""
    found = re.match(r"(?:cifar_|mgd_)?[a-z]+(?:_v\d)?", model.rpartition(":")[2].removeprefix("tf_"))
    return found[0] if found else model


def representatives(experiments: Iterable[Experiment]) -> list[tuple[str, str]]:
    """Runs (experiment, run) with every method, every family of networks and both ways to start, the first of each."""
    chosen: dict[tuple[str, str], None] = {}
    seen: set[object] = set()
    for experiment in experiments:
        for run, line in experiment.config.runs.items():
            if line.recipe is None:
                continue
            mgd = line.objective.mgd
            method = (frozenset(line.objective.terms()), mgd and mgd.reducer)
            start = "from weights" if line.weights is not None else "from scratch"
            new = {method, family(line.model), start} - seen
            if new:
                seen |= new
                chosen[experiment.name, run] = None
    return list(chosen)


def write_rehearsal(experiments: Iterable[Experiment], folder: Path) -> None:
    """Write ``folder``/config with every experiment shrunk; files that are right already are left alone."""
    recipes: dict[str, str] = {}
    datasets: dict[str, Any] = {}
    config = folder / "config"
    for experiment in experiments:
        datasets[experiment.config.dataset] = _generated(experiment)
        runs = _lines(experiment, recipes)
        body = experiment.config.model_dump(mode="json", exclude_defaults=True)
        _write(config / experiment.path.name, _dumped({experiment.name: body | {"seeds": [0], "runs": runs}}))
        ledger = experiment.path.parent / "published" / f"{experiment.name}.csv"
        if ledger.is_file():
            _write(config / "published" / ledger.name, ledger.read_text(encoding="utf-8"))
    _write(config / "datasets.yaml", _dumped(datasets))
    for text, name in recipes.items():
        _write(config / "recipes" / f"{name}.yaml", text)


def _lines(experiment: Experiment, recipes: dict[str, str]) -> dict[str, Any]:
    """The runs. Weights of files and of the network are not there: a network that is trained for it stands in."""
    lines: dict[str, Any] = {}
    for run, line in experiment.config.runs.items():
        lines[run] = body = line.model_dump(mode="json", exclude_defaults=True, exclude={"seeds", "recipe"})
        elsewhere = line.weights is not None and experiment.origin(run) is None
        if line.recipe is not None:
            body["recipe"] = _filed(
                rehearsed(experiment.recipes[run], line.objective, line.model), line.recipe, recipes
            )
        elif elsewhere:
            del body["weights"]
            body["recipe"] = _filed(
                rehearsed(_plain_recipe(experiment.spec(run).preprocess), line.objective, line.model),
                "stand-in",
                recipes,
            )
        if elsewhere and line.recipe is not None:
            name = f"stand-in-{_slug(line)}"
            plain = _plain_recipe(experiment.recipes[run].preprocess)
            lines[name] = {key: body[key] for key in ("model", "model_args") if key in body} | {
                "recipe": _filed(rehearsed(plain, Objective(ce=CrossEntropyOptions()), line.model), "stand-in", recipes)
            }
            body["weights"] = f"{RUN_PREFIX}{name}"
    return lines


def _slug(line: RunConfig) -> str:
    """A plain name for a network and the weights that it begins with."""
    text = json.dumps([line.model, line.model_args, line.weights])
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")


def _filed(body: dict[str, Any], name: str, recipes: dict[str, str]) -> str:
    """The name of a recipe's file; equal recipes share one."""
    taken = set(recipes.values())
    candidates = (f"{name}-{number}" if number else name for number in range(len(recipes) + 1))
    return recipes.setdefault(_dumped(body), next(candidate for candidate in candidates if candidate not in taken))


def rehearsed(recipe: Recipe, objective: Objective, model: str) -> dict[str, Any]:
    """A recipe as a rehearsal follows it: all its parts, for a few steps."""
    body = recipe.model_dump(mode="json", exclude_defaults=True)
    bake = objective.bake
    body |= {"epochs": EPOCHS, "batch": BATCH if bake is None else BATCH // 2 * (bake.partners + 1)}
    body["optimizer"]["lr"] = LEARNING_RATE
    body["schedule"] = _short_schedule(body["schedule"])
    if not FIXED_SIZE.search(model):
        body["preprocess"] = _small_preprocess(recipe.preprocess)
    # Half precision needs a GPU; bfloat16 takes the same paths on a CPU.
    if recipe.precision == "16-mixed":
        body["precision"] = "bf16-mixed"
    return body


def _short_schedule(schedule: dict[str, Any]) -> dict[str, Any]:
    short: dict[str, Any] = {"drops": [1], "every": 1, "restart_every": 1, "cooldown": 1, "min_lr": LEARNING_RATE / 100}
    body = {key: short.get(key, value) for key, value in schedule.items()}
    if "warmup" in body:
        short = {"epochs": 1, "lr": LEARNING_RATE / 10}
        body["warmup"] = {key: short.get(key, value) for key, value in body["warmup"].items()}
    return body


def _small_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    body = preprocess.model_dump(mode="json", exclude_defaults=True)
    size = min(preprocess.size, SIZE)
    if preprocess.resize is not None:
        body["resize"] = round(preprocess.resize * size / preprocess.size)
    return body | {"size": size}


def _plain_recipe(preprocess: Preprocess | None) -> Recipe:
    """A recipe for a network that stands in for published weights."""
    body: dict[str, Any] = {
        "epochs": EPOCHS,
        "batch": BATCH,
        "optimizer": {"name": "sgd", "lr": LEARNING_RATE},
        "schedule": {"name": "constant"},
        "preprocess": {"size": SIZE} if preprocess is None else preprocess.model_dump(mode="json"),
    }
    return Recipe.model_validate(body)


def _generated(experiment: Experiment) -> dict[str, Any]:
    sizes = [recipe.preprocess.size for recipe in experiment.recipes.values()]
    return {
        "path": f"generated/{experiment.config.dataset}",
        "generated": {
            "classes": experiment.dataset.classes or CLASSES,
            "images": TRAINING_IMAGES,
            "size": min(SIZE, max(sizes, default=SIZE)),
        },
    }


def _dumped(body: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=1000)
    return _HEADER + text


def _write(path: Path, text: str) -> None:
    """Many jobs of one workflow may write at once; none of them needs to."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
