"""From an experiment file to resolved runs: names looked up, recipes merged, digests computed."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from distillery.errors import UserError
from distillery.experiment.reading import nearest, read_mapping, validate
from distillery.experiment.schema.block import Block
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import ExperimentConfig, RunConfig
from distillery.experiment.schema.objective import Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe

# Names that stand beside experiments in the results folder.
RESERVED = ("datasets", "tables", "figures", "rehearsal", "work")

# What `weights` begins with that names a run.
RUN_PREFIX = "run:"


class RunSpec(Block):
    """Everything that decides what a run's weights will be, and nothing else.

    Names of experiments, runs and machines are left out on purpose: renaming or moving never retrains.
    """

    dataset: str
    model: str
    model_args: dict[str, bool | int | float | str] = Field({})
    seed: int
    weights: str | None = None
    initial: "RunSpec | None" = None  # the run whose weights these are, in place of `weights`
    new_classifier: bool = False
    preprocess: Preprocess | None = None
    recipe: Recipe | None = None
    objective: Objective | None = None
    teacher: "RunSpec | None" = None
    teacher_norm: Literal["eval", "batch"] = "eval"
    margin_source: Literal["teacher", "pretrained"] = "teacher"

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 of the spec.

        Defaults are left out, so that writing one explicitly, or a later release that adds a key, changes nothing.
        """
        text = json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Experiment:
    """One experiment file, read, checked and ready to resolve its runs."""

    path: Path
    name: str
    config: ExperimentConfig
    dataset: Dataset
    recipes: dict[str, Recipe]
    preprocesses: dict[str, Preprocess]  # of the imported runs that say how images must be prepared for them
    cache: "dict[str, Experiment]" = field(
        default_factory=dict, compare=False, repr=False
    )  # experiments read together, by name

    def seeds(self, run: str) -> tuple[int, ...]:
        """The seeds a run is made with; imported weights exist once.

        Raises:
            UserError: the experiment has no such run.
        """
        if run not in self.config.runs:
            raise UserError(f"{self.path}: {self.name}.runs: no run {run!r}; {nearest(run, self.config.runs)}")
        line = self.config.runs[run]
        if line.recipe is None:
            return (0,)
        return line.seeds or self.config.seeds

    def teacher(self, run: str) -> str | None:
        """The run that teaches this one."""
        return self.config.runs[run].teacher

    def teachers(self) -> set[str]:
        """Every run that teaches another."""
        return {line.teacher for line in self.config.runs.values() if line.teacher}

    def origin(self, run: str) -> "tuple[Experiment, str] | None":
        """The experiment and the run whose weights this run imports or starts from, where `weights` names a run.

        Raises:
            UserError: there is no such experiment or run.
        """
        weights = self.config.runs[run].weights
        if weights is None or not weights.startswith(RUN_PREFIX):
            return None
        where = f"{self.path}: {self.name}.runs.{run}.weights"
        name, slash, other = weights.removeprefix(RUN_PREFIX).rpartition("/")
        experiment = self._other_experiment(name, where) if slash else self
        if other not in experiment.config.runs:
            raise UserError(
                f"{where}: {experiment.path} has no run {other!r}; {nearest(other, experiment.config.runs)}"
            )
        return experiment, other

    def _other_experiment(self, name: str, where: str) -> "Experiment":
        if name not in self.cache:
            path = self.path.with_name(f"{name}.yaml")
            if not path.is_file():
                known = [found.stem for found in self.path.parent.glob("*.yaml") if found.name != "datasets.yaml"]
                raise UserError(f"{where}: no experiment {path}; {nearest(name, known)}")
            _read_experiment(path, self.cache)
        return self.cache[name]

    def parents(self, run: str) -> "list[tuple[Experiment, str]]":
        """The runs that this one descends from at first hand: its teacher, and the one whose weights it takes."""
        teacher, origin = self.teacher(run), self.origin(run)
        return [*([(self, teacher)] if teacher else []), *([origin] if origin else [])]

    def family(self, runs: Iterable[str]) -> "list[tuple[Experiment, str]]":
        """Some runs, their parents, their parents' parents, and so on, each once."""
        found: dict[tuple[str, str], tuple[Experiment, str]] = {}
        waiting: list[tuple[Experiment, str]] = [(self, run) for run in runs]
        while waiting:
            experiment, run = waiting.pop()
            if (experiment.name, run) not in found:
                found[experiment.name, run] = experiment, run
                waiting += experiment.parents(run)
        return list(found.values())

    def members(self) -> Iterator[tuple[str, int]]:
        """Every (run, seed) of the experiment, in the order written."""
        for run in self.config.runs:
            for seed in self.seeds(run):
                yield run, seed

    def spec(self, run: str, seed: int | None = None) -> RunSpec:
        """Resolve a run.

        A teacher is always the first seed of its run, so that the spread over a student's seeds is the student's own.

        Raises:
            UserError: the experiment has no such run, or the run no such seed.
        """
        seeds = self.seeds(run)
        seed = seeds[0] if seed is None else seed
        if seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise UserError(f"{self.path}: {self.name}.runs.{run}: no seed {seed}; valid: {known}")
        line, recipe = self.config.runs[run], self.recipes.get(run)
        origin = self.origin(run)
        return RunSpec(
            dataset=self.config.dataset,
            model=line.model,
            model_args=line.model_args,
            seed=seed,
            weights=None if origin else line.weights,
            initial=origin[0].spec(origin[1]) if origin else None,
            new_classifier=line.new_classifier,
            preprocess=self.preprocesses.get(run),
            recipe=recipe,
            objective=line.objective if recipe else None,
            teacher=self.spec(line.teacher) if line.teacher else None,
            teacher_norm=(line.teacher_norm or _usual_norm(line.objective)) if line.teacher else "eval",
            margin_source=line.margin_source if line.teacher else "teacher",
        )


def _usual_norm(objective: Objective) -> Literal["eval", "batch"]:
    """Overhaul's authors let the teacher normalise by batch statistics; everybody else freezes it."""
    return "batch" if objective.overhaul is not None else "eval"


def load_experiment(path: Path) -> Experiment:
    """Read an experiment file with the recipes, the data set and the other experiments that it names.

    Raises:
        UserError: something in it is wrong; one line says what, where, and what would be right.
    """
    return _check_runs(_read_experiment(path, {}))


def _read_experiment(path: Path, cache: dict[str, Experiment]) -> Experiment:
    """Read an experiment and put it in the cache; what its lines say of other runs is not checked yet."""
    raw = read_mapping(path)
    if len(raw) != 1:
        raise UserError(f"{path}: expected one top-level key, the experiment's name; found {len(raw)}")
    (name,) = raw
    if name != path.stem:
        raise UserError(f"{path}: top-level key {name!r} must be the file's name, {path.stem!r}")
    if name in RESERVED:
        raise UserError(f"{path}: {name!r} is a folder of results/ and cannot name an experiment")
    lines, overrides = _split_lines(path, name, raw[name])
    config = validate(ExperimentConfig, {**raw[name], "runs": lines}, path, (name,))
    dataset = load_dataset(path.parent / "datasets.yaml", config.dataset, f"{path}: {name}.dataset")
    recipes = {
        run: _merge_recipe(path, name, run, line.recipe, overrides[run])
        for run, line in config.runs.items()
        if line.recipe is not None
    }
    for run, line in config.runs.items():
        _check_line(f"{path}: {name}.runs.{run}", line, overrides[run], recipes.get(run))
    preprocesses = {
        run: validate(Preprocess, overrides[run]["preprocess"], path, (name, "runs", run, "preprocess"))
        for run, line in config.runs.items()
        if line.recipe is None and overrides[run].get("preprocess") is not None
    }
    experiment = cache[name] = Experiment(path, name, config, dataset, recipes, preprocesses, cache)
    return experiment


def load_experiments(folder: Path) -> dict[str, Experiment]:
    """Read every experiment of a configuration folder."""
    cache: dict[str, Experiment] = {}
    paths = sorted(path for path in folder.glob("*.yaml") if path.name != "datasets.yaml")
    experiments = [_read_experiment(path, cache) for path in paths]
    return {experiment.name: _check_runs(experiment) for experiment in experiments}


def _split_lines(path: Path, name: str, body: object) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Separate each run's own keys from the recipe keys it overrides; leave what is misshapen to the schema."""
    runs = body.get("runs") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(runs, dict):
        validate(ExperimentConfig, body, path, (name,))
        raise AssertionError("the schema accepted an experiment without runs")
    lines: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for run, line in runs.items():
        if not isinstance(line, dict):
            lines[run], overrides[run] = line, {}
            continue
        overrides[run] = {key: value for key, value in line.items() if key in Recipe.model_fields}
        lines[run] = {key: value for key, value in line.items() if key not in Recipe.model_fields}
        for key in lines[run]:
            if key not in RunConfig.model_fields:
                valid = [*RunConfig.model_fields, *Recipe.model_fields]
                raise UserError(f"{path}: {name}.runs.{run}.{key}: unknown key {key!r}; {nearest(str(key), valid)}")
    return lines, overrides


def load_dataset(path: Path, dataset: str, asked_by: str = "") -> Dataset:
    """Read one line of datasets.yaml; ``asked_by`` says in an error who named it.

    Raises:
        UserError: there is no such line, or it is wrong.
    """
    raw = read_mapping(path)
    if dataset not in raw:
        raise UserError(f"{asked_by or path}: no data set {dataset!r}; {nearest(dataset, raw)}")
    return validate(Dataset, raw[dataset], path, (dataset,))


def _merge_recipe(path: Path, name: str, run: str, recipe: str, overrides: dict[str, Any]) -> Recipe:
    recipe_path = path.parent / "recipes" / f"{recipe}.yaml"
    if not recipe_path.is_file():
        known = sorted(found.stem for found in recipe_path.parent.glob("*.yaml"))
        raise UserError(f"{path}: {name}.runs.{run}.recipe: no file {recipe_path}; {nearest(recipe, known)}")
    base = read_mapping(recipe_path)
    merged = validate(Recipe, base, recipe_path)
    if overrides:
        merged = validate(Recipe, _deep_merge(base, overrides), path, (name, "runs", run))
    return merged


def _deep_merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Lay overrides over a recipe, mapping by mapping; a block that changes its `name` replaces the recipe's whole."""
    merged = dict(base)
    for key, value in overrides.items():
        old = merged.get(key)
        renamed = (
            isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        )
        merged[key] = (
            _deep_merge(old, value) if isinstance(value, dict) and isinstance(old, dict) and not renamed else value
        )
    return merged


def _check_line(where: str, line: RunConfig, overrides: dict[str, Any], recipe: Recipe | None) -> None:
    """Check which keys of a run go together."""
    if line.recipe is None and line.weights is None:
        raise UserError(f"{where}: a run needs `recipe` (to train), `weights` (to import) or both; found neither")
    if line.recipe is None:
        stray = sorted(set(overrides) - {"preprocess"}) + ["teacher"] * (line.teacher is not None)
        stray += ["new_classifier"] * line.new_classifier
        if stray:
            raise UserError(f"{where}.{stray[0]}: imported weights are not trained; remove this key or add `recipe`")
    if line.new_classifier and line.weights is None:
        raise UserError(f"{where}.new_classifier: there are no `weights` whose classifier it could replace")
    if (
        recipe is not None
        and recipe.classifier_std is not None
        and line.weights is not None
        and not line.new_classifier
    ):
        raise UserError(
            f"{where}.classifier_std: {recipe.classifier_std} has no effect, the last layer is that of `weights`; "
            "write `classifier_std: null` or `new_classifier: true`"
        )


def _check_runs(experiment: Experiment) -> Experiment:
    """Check what the schema cannot see: names that point at each other."""
    runs = experiment.config.runs
    for run in runs:
        _check_teacher(experiment, run)
    for run in runs:
        where = f"{experiment.path}: {experiment.name}.runs.{run}"
        _check_descent(experiment, run)
        _check_sampling(experiment, run)
        if len(set(experiment.seeds(run))) != len(experiment.seeds(run)):
            raise UserError(f"{where}.seeds: a seed occurs twice")
    for table, block in experiment.config.tables.items():
        for row in block.runs():
            if row not in runs:
                where = f"{experiment.path}: {experiment.name}.tables.{table}.{'grid' if block.grid else 'rows'}"
                raise UserError(f"{where}: no run {row!r}; {nearest(row, runs)}")
    return experiment


def _check_teacher(experiment: Experiment, run: str) -> None:
    runs = experiment.config.runs
    line = runs[run]
    where = f"{experiment.path}: {experiment.name}.runs.{run}"
    learns = [name for name, options in line.objective.terms().items() if options.needs_teacher]
    if line.teacher is None:
        if learns:
            raise UserError(f"{where}.teacher: missing; the objective's term {learns[0]!r} learns from a teacher")
        return
    if line.teacher not in runs:
        raise UserError(f"{where}.teacher: no run {line.teacher!r}; {nearest(line.teacher, runs)}")
    if not learns:
        raise UserError(
            f"{where}.teacher: no term of the objective uses {line.teacher!r}; add kd, mgd or overhaul, or remove it"
        )
    taught = runs[line.teacher]
    if line.margin_source == "pretrained" and (taught.recipe is None or taught.weights is None):
        raise UserError(f"{where}.margin_source: {line.teacher!r} was not trained from `weights`; write teacher")


def _check_descent(experiment: Experiment, run: str) -> None:
    """No run may descend from itself, by teachers or by weights, on whatever experiments they stand."""

    def visit(descendants: tuple[str, ...], experiment: Experiment, run: str) -> None:
        name = f"{experiment.name}/{run}"
        if name in descendants:
            circle = " <- ".join([*descendants[descendants.index(name) :], name])
            raise UserError(f"{start}: {circle} descend from each other in a circle")
        if run not in experiment.config.runs:
            return  # on another experiment, whose own check says it better
        for parent in experiment.parents(run):
            visit((*descendants, name), *parent)

    start = f"{experiment.path}: {experiment.name}.runs.{run}"
    visit((), experiment, run)


def _check_sampling(experiment: Experiment, run: str) -> None:
    """Mixing pairs a batch's images; BAKE's partners share their anchor's batch and are the only repetitions."""
    bake, recipe = experiment.config.runs[run].objective.bake, experiment.recipes.get(run)
    if recipe is not None and recipe.mix is not None and (recipe.batch % 2 or not recipe.drop_last):
        raise UserError(
            f"{experiment.path}: {experiment.name}.runs.{run}.mix: needs an even `batch` and `drop_last: true`"
        )
    if bake is None or recipe is None or bake.partners == 0:
        return
    where = f"{experiment.path}: {experiment.name}.runs.{run}"
    if recipe.batch % (bake.partners + 1):
        group = bake.partners + 1
        raise UserError(
            f"{where}.batch: {recipe.batch} is no multiple of {group}, an image and its {group - 1} partners"
        )
    if recipe.repeats > 1:
        raise UserError(
            f"{where}.repeats: {recipe.repeats} cannot go with BAKE's partners; set repeats: 1 or partners: 0"
        )
