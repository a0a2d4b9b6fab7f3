"""From files to experiments: an experiment with its recipes, its data set and the experiments it names, merged."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from distillery.experiment.checks import check_experiment, check_run
from distillery.experiment.experiment import Experiment
from distillery.experiment.plugins import check_own_terms, use_project
from distillery.experiment.reading import nearest, read_mapping, validate
from distillery.experiment.rehearsal import rehearsed
from distillery.experiment.schema.block import LONGEST_NAME, NAME_PATTERN
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import ExperimentConfig, RunConfig
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.spec import RUN_PREFIX
from distillery.experiment.sweep import merged, written_out
from distillery.process import garbage_kept

# Names that stand beside experiments in the results folder.
RESERVED = ("datasets", "tables", "figures", "rehearsal", "work")


def experiment_names(folder: Path) -> list[str]:
    """The names of the experiments of a configuration folder, by their files; hidden files are none."""
    files = (path for path in folder.glob("*.yaml") if not path.name.startswith("."))
    return sorted(path.stem for path in files if path.name != "datasets.yaml")


def load_experiment(path: Path, *, rehearsal: bool = False, run: str | None = None) -> Experiment:
    """Read an experiment file with the recipes, the data set and the other experiments that it names.

    With ``rehearsal``, everything that it says is shrunk to a few steps on generated images. With ``run``, it may be
    read as if it had this run alone, with those that it descends from, and no tables: what they are does not depend on
    the others.

    Raises:
        UserError: something in it is wrong; one line says what, where, and what would be right.
    """
    with garbage_kept():
        experiment = _read_experiment(path, {}, run=run)
        check_experiment(experiment)
        return _read_experiment(path, {}, rehearsal=True) if rehearsal else experiment


def load_experiments(folder: Path) -> dict[str, Experiment]:
    """Read every experiment of a configuration folder.

    Raises:
        UserError: one of them is wrong.
    """
    linked: dict[str, Experiment] = {}
    experiments = [
        linked.get(name) or _read_experiment(folder / f"{name}.yaml", linked) for name in experiment_names(folder)
    ]
    for experiment in experiments:
        check_experiment(experiment)
    return {experiment.name: experiment for experiment in experiments}


def _read_experiment(
    path: Path, linked: dict[str, Experiment], rehearsal: bool = False, run: str | None = None
) -> Experiment:
    """Read an experiment and remember it among the linked ones; what its runs say of other runs is not checked yet."""
    raw = read_mapping(path)
    use_project(path.resolve().parent.parent)
    check_own_terms(TERMS, lambda name: name == "loss" or hasattr(Objective, name))
    if len(raw) != 1:
        raise UserError(f"{path}: expected one top-level key, the experiment's name; found {len(raw)}")
    (name,) = raw
    if name != path.stem:
        raise UserError(f"{path}: top-level key {name!r} must be the file's name, {path.stem!r}")
    _check_name(name, str(path), "an experiment", experiment_names(path.parent))
    if name in RESERVED:
        raise UserError(f"{path}: {name!r} is a folder of results/ and cannot name an experiment")
    body = written_out(path, name, raw[name]) if isinstance(raw[name], dict) else raw[name]
    body = body if run is None else _narrowed(body, run)
    runs, overrides = _split_runs(path, name, body)
    config = validate(ExperimentConfig, {**body, "runs": runs}, path, (name,))
    dataset = load_dataset(path.parent / "datasets.yaml", config.dataset, f"{path}: {name}.dataset")
    recipes = _merge_recipes(path, config, name, overrides)
    for each, run_config in config.runs.items():
        check_run(f"{path}: {name}.runs.{each}", run_config, overrides[each], recipes.get(each), dataset)
    preprocesses = {
        each: validate(Preprocess, overrides[each]["preprocess"], path, (name, "runs", each, "preprocess"))
        for each, run_config in config.runs.items()
        if run_config.recipe is None and overrides[each].get("preprocess") is not None
    }
    experiment = Experiment(path, name, config, dataset, recipes, preprocesses, linked=linked)
    linked[name] = rehearsed(experiment) if rehearsal else experiment
    for each, run_config in config.runs.items():
        if run_config.weights is not None and run_config.weights.startswith(RUN_PREFIX):
            _link(path, run_config.weights, f"{path}: {name}.runs.{each}.weights", linked, rehearsal)
    return linked[name]


def teachers_written(keys: Mapping[str, Any]) -> list[str]:
    """The runs that a run's line names as its teachers, before the schema has seen it."""
    teacher = keys.get("teacher")
    each = teacher if isinstance(teacher, list) else [teacher]
    return [str(one.get("run") if isinstance(one, dict) else one) for one in each if one is not None]


def _narrowed(body: Any, run: str) -> Any:  # noqa: ANN401
    """An experiment with a run and those that it descends from; all of one that leads to others or is misshapen."""
    runs = body.get("runs") if isinstance(body, dict) else None
    lines = list(runs.values()) if isinstance(runs, dict) else []
    origins = {str(keys.get("weights")) for keys in lines if isinstance(keys, dict)}
    if not isinstance(runs, dict) or any(weights.startswith(RUN_PREFIX) and "/" in weights for weights in origins):
        return body
    kept, waiting = set[str](), [run]
    while waiting:
        one = waiting.pop()
        if one in kept:
            continue
        keys = runs.get(one)
        if not isinstance(keys, dict):
            return body
        kept.add(one)
        weights = str(keys.get("weights"))
        waiting += [*teachers_written(keys), *([weights.removeprefix(RUN_PREFIX)] * weights.startswith(RUN_PREFIX))]
    return body | {"runs": {name: keys for name, keys in runs.items() if name in kept}, "tables": {}}


def _link(path: Path, weights: str, where: str, linked: dict[str, Experiment], rehearsal: bool) -> None:
    """Read the other experiment, if it is one, that holds the run whose weights a run takes."""
    name, slash, _ = weights.removeprefix(RUN_PREFIX).rpartition("/")
    if slash and name not in linked:
        other, known = path.parent / f"{name}.yaml", experiment_names(path.parent)
        if name not in known:
            raise UserError(f"{where}: no experiment {other}; {nearest(name, known)}")
        _read_experiment(other, linked, rehearsal)


def _split_runs(path: Path, name: str, body: object) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Separate each run's own keys from the recipe keys it overrides; leave what is misshapen to the schema."""
    runs = body.get("runs") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(runs, dict):
        validate(ExperimentConfig, body, path, (name,))
        raise AssertionError("the schema accepted an experiment without runs")
    own: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for run, keys in runs.items():
        if not isinstance(keys, dict):
            own[run], overrides[run] = keys, {}
            continue
        overrides[run] = {key: value for key, value in keys.items() if key in Recipe.model_fields}
        own[run] = {key: value for key, value in keys.items() if key not in Recipe.model_fields}
        for key in own[run]:
            if key not in RunConfig.model_fields:
                valid = [*RunConfig.model_fields, *Recipe.model_fields]
                raise UserError(f"{path}: {name}.runs.{run}.{key}: unknown key {key!r}; {nearest(str(key), valid)}")
    return own, overrides


def load_dataset(path: Path, dataset: str, asked_by: str = "") -> Dataset:
    """Read one line of datasets.yaml; ``asked_by`` says in an error who named it.

    Raises:
        UserError: there is no such line, or it is wrong.
    """
    raw = read_mapping(path)
    if dataset not in raw:
        raise UserError(f"{asked_by or path}: no data set {dataset!r}; {nearest(dataset, raw)}")
    _check_name(dataset, str(path), "a data set", raw)
    return validate(Dataset, raw[dataset], path, (dataset,))


def _check_name(name: str, where: str, what: str, others: Iterable[str]) -> None:
    """Names of files and of data sets become folders, and words of commands."""
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise UserError(
            f"{where}: {name!r} cannot name {what}; use up to {LONGEST_NAME} letters, digits and . _ - only, letter or "
            "digit first"
        )
    for other in others:
        if other != name and other.lower() == name.lower():
            raise UserError(f"{where}: {other!r} and {name!r} differ in case only, and on some disks name one folder")


def _merge_recipes(
    path: Path, config: ExperimentConfig, name: str, overrides: dict[str, dict[str, Any]]
) -> dict[str, Recipe]:
    """Each run's recipe with what the run says otherwise; thousands may share one, which is read once."""
    read: dict[str, tuple[Recipe, dict[str, Any]]] = {}
    recipes = {}
    for run, run_config in config.runs.items():
        if (recipe := run_config.recipe) is None:
            continue
        if recipe not in read:
            read[recipe] = load_recipe(path.parent, recipe, f"{path}: {name}.runs.{run}.recipe")
        whole, base = read[recipe]
        own = overrides[run]
        recipes[run] = validate(Recipe, merged(base, own), path, (name, "runs", run)) if own else whole
    return recipes


def load_recipe(folder: Path, name: str, asked_by: str) -> tuple[Recipe, dict[str, Any]]:
    """Read recipes/<name>.yaml of a configuration folder, as a recipe and as it is written.

    Raises:
        UserError: there is none, or it is wrong; ``asked_by`` says who named it.
    """
    path = folder / "recipes" / f"{name}.yaml"
    if not path.exists():
        raise UserError(
            f"{asked_by}: no file {path}; {nearest(name, [file.stem for file in path.parent.glob('*.yaml')])}"
        )
    written = read_mapping(path)
    return validate(Recipe, written, path), written


def usual_recipe(folder: Path, dataset: str) -> str | None:
    """The recipe that most runs on a data set train by, over all experiments of a configuration folder.

    An experiment that is wrong, as one that is being written, costs a warning.
    """
    experiments = []
    for name in experiment_names(folder):
        try:
            experiments.append(load_experiment(folder / f"{name}.yaml"))
        except UserError as error:
            print(f"warning: passed over: {error}", file=sys.stderr)
    names = Counter(
        line.recipe
        for experiment in experiments
        if experiment.config.dataset == dataset
        for line in experiment.config.runs.values()
        if line.recipe is not None
    )
    return names.most_common(1)[0][0] if names else None
