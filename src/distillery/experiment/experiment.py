"""An experiment as it was read: its runs, how they descend from each other, and what each resolves to."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from distillery.errors import UserError, located
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import PROBED
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import ExperimentConfig
from distillery.experiment.schema.labels import FewLabels, resolve_labels
from distillery.experiment.schema.objective import Objective
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.spec import RUN_PREFIX, RunSpec, Taught


@dataclass(frozen=True)
class Experiment:
    """One experiment file, read, checked and ready to resolve its runs.

    ``linked`` holds the experiments that were read together with this one, by name: its runs start from runs of theirs.
    """

    path: Path
    name: str
    config: ExperimentConfig
    dataset: Dataset
    recipes: dict[str, Recipe]
    preprocesses: dict[str, Preprocess]  # of the imported runs that say how images must be prepared for them
    rehearsal: bool = False
    linked: "dict[str, Experiment]" = field(default_factory=dict, compare=False, repr=False)
    _specs: dict[tuple[str, int], RunSpec] = field(default_factory=dict, compare=False, repr=False)

    def seeds(self, run: str) -> tuple[int, ...]:
        """The seeds a run is made with; imported weights exist once.

        Raises:
            UserError: the experiment has no such run.
        """
        if run not in self.config.runs:
            raise UserError(f"{self.path}: {self.name}.runs: no run {run!r}; {nearest(run, self.config.runs)}")
        config = self.config.runs[run]
        return (config.seeds or self.config.seeds) if config.recipe is not None else (0,)

    def where(self, run: str) -> str:
        """Where a run stands, for error messages: ``config/digits.yaml: digits.runs.resnet8``."""
        return f"{self.path}: {self.name}.runs.{run}"

    @property
    def published(self) -> Path:
        """The published numbers, if there are any."""
        return self.path.parent / "published" / f"{self.name}.csv"

    def teacher(self, run: str) -> str | None:
        """The run that teaches this one; None where there are several, or none."""
        return teachers[0] if len(teachers := self.teachers_of(run)) == 1 else None

    def teachers_of(self, run: str) -> list[str]:
        """The runs that teach this one."""
        return [taught.run for taught in self.config.runs[run].teachers]

    @cached_property
    def teachers(self) -> set[str]:
        """Every run that teaches another."""
        return {teacher for run in self.config.runs for teacher in self.teachers_of(run)}

    def probes(self, run: str) -> list[str]:
        """The columns of probes.json that tables show of a run; all where none does, for a probe by hand."""
        shown = {name for table in self.config.tables.values() if run in table.runs() for name in table.columns}
        return [name for name in PROBED if name in shown] or PROBED

    def trained(self) -> list[str]:
        """The runs that are trained, not imported."""
        return [run for run, config in self.config.runs.items() if config.recipe is not None]

    def origin(self, run: str) -> "tuple[Experiment, str] | None":
        """The experiment and the run whose weights this run imports or starts from, where `weights` names a run.

        Raises:
            UserError: there is no such run.
        """
        weights = self.config.runs[run].weights
        if weights is None or not weights.startswith(RUN_PREFIX):
            return None
        where = f"{self.where(run)}.weights"
        name, slash, other = weights.removeprefix(RUN_PREFIX).rpartition("/")
        experiment = self.linked[name] if slash else self
        if other not in experiment.config.runs:
            known = nearest(other, experiment.config.runs)
            raise UserError(f"{where}: {experiment.path} has no run {other!r}; {known}")
        return experiment, other

    def parents(self, run: str) -> "list[tuple[Experiment, str]]":
        """The runs that this one descends from at first hand: its teacher, and the one whose weights it takes."""
        origin = self.origin(run)
        return [*((self, teacher) for teacher in self.teachers_of(run)), *([origin] if origin else [])]

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

    def labels(self, run: str) -> FewLabels | None:
        """Which labels a run may use; None for all.

        Raises:
            UserError: it has a key of labels that has no effect.
        """
        config = self.config.runs[run]
        if config.recipe is None:
            return None
        labels = self.config.labels if config.labels is None else config.labels
        with located(self.where(run)):
            unlabelled = self.dataset.unlabelled is not None
            return resolve_labels(labels, config.images, config.labelled_share, config.objective, unlabelled)

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
            raise UserError(f"{self.where(run)}: no seed {seed}; valid: {', '.join(map(str, seeds))}")
        if (run, seed) not in self._specs:
            self._specs[run, seed] = self._resolve(run, seed)
        return self._specs[run, seed]

    def _resolve(self, run: str, seed: int) -> RunSpec:
        config, recipe, origin = self.config.runs[run], self.recipes.get(run), self.origin(run)
        alone = config.teachers[0] if len(config.teachers) == 1 else None
        return RunSpec(
            dataset=self.config.dataset,
            images=self.dataset,
            model=config.model,
            model_args=config.model_args,
            seed=seed,
            weights=None if origin else config.weights,
            initial=origin[0].spec(origin[1]) if origin else None,
            nest=config.nest,
            prefix=config.prefix,
            ignore=config.ignore,
            new_classifier=config.new_classifier,
            classes=config.classes,
            preprocess=self.preprocesses.get(run),
            recipe=recipe,
            objective=self._objective(run) if recipe else None,
            teacher=self.spec(alone.run) if alone else None,
            teachers=tuple(
                Taught(run=self.spec(taught.run), weight=taught.weight, answers=taught.stored)
                for taught in (() if alone else config.teachers)
            ),
            teacher_mean=config.teacher_mean,
            teacher_norm=(config.teacher_norm or config.objective.default_teacher_norm()) if config.teacher else "eval",
            margin_source=config.margin_source if config.teacher else "teacher",
            labels=self.labels(run),
            answers=alone.stored if alone and recipe else None,
        ).at(self.where(run))

    def _objective(self, run: str) -> Objective:
        """A run's objective, of which terms name their teachers by digests, so that runs may be renamed."""
        objective, several = self.config.runs[run].objective, len(self.teachers_of(run)) > 1
        named = {
            name: options.model_copy(update={"teacher": self.spec(options.teacher).digest if several else None})
            for name, options in objective.terms().items()
            if options.teacher is not None
        }
        return objective.model_copy(update=named) if named else objective
