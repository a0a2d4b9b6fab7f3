"""Read what was measured: metrics.json of each seed and profile.json of each run."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.reading import validate
from distillery.paths import profile_path, run_folder
from distillery.reporting.columns import COLUMNS
from distillery.reporting.summary import Summary, summarize

Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]


class _Measurement(BaseModel):
    """Part of a results file; what else stands there is for other readers."""

    model_config = ConfigDict(frozen=True)

    digest: str


class Metrics(_Measurement):
    """What metrics.json holds for the tables."""

    images: PositiveInt
    selection: Literal["last", "best", "imported"]
    # Not in metrics of the first releases, which chose by the validation images.
    selection_split: Literal["holdout", "val"] | None = None
    top1: Percent
    top5: Percent
    nll: FiniteFloat
    ece: Percent
    agreement: Percent | None


class Profile(_Measurement):
    """What profile.json holds for the tables."""

    params: PositiveInt
    macs: PositiveInt
    size_bytes: PositiveInt
    latency_ms: FiniteFloat
    throughput: FiniteFloat
    throughput_batch: PositiveInt
    device: str
    threads: PositiveInt | None
    # Not in profiles of the first releases; the first is None where the machine has no GPU.
    gpu_throughput: FiniteFloat | None = None
    cpu_throughput: FiniteFloat | None = None
    cpu: str | None = None
    cpu_threads: PositiveInt | None = None


@dataclass(frozen=True)
class Measured:
    """What is known of a run: the metrics of its seeds, its profile, or both, as far as they were asked for."""

    metrics: tuple[Metrics, ...] = ()
    profile: Profile | None = None
    teacher_profile: Profile | None = None

    def holds(self, metric: str) -> bool:
        """Whether what a column is taken from was read."""
        return bool(self.metrics) if COLUMNS[metric].file == "metrics.json" else self.profile is not None

    def complete(self, files: set[str], seeds: int) -> bool:
        """Whether all was read that the tables show of the run."""
        profiled = "profile.json" not in files or self.profile is not None
        return profiled and ("metrics.json" not in files or len(self.metrics) == seeds)

    @property
    def selection(self) -> str:
        """Which epoch's weights were measured: last, best, best by held-out images, or an imported network's."""
        if not self.metrics:
            return ""
        first = self.metrics[0]
        return "holdout" if (first.selection, first.selection_split) == ("best", "holdout") else first.selection

    @property
    def images(self) -> int:
        """How many images each metric is taken over."""
        return self.metrics[0].images if self.metrics else 0

    def summary(self, metric: str) -> Summary | None:
        """One column's value over the seeds; None where it has none, as the agreement of a run without a teacher."""
        assert metric != "gain", "what was best before stands in the ledger"
        column = COLUMNS[metric]
        if metric == "size_ratio":
            return self._size_ratio()
        sources: tuple[BaseModel, ...] = self.metrics
        if column.file == "profile.json":
            sources = () if self.profile is None else (self.profile,)
        values = [getattr(source, column.key) for source in sources]
        if not values or None in values:
            return None
        if metric in ("error1", "error5"):
            values = [100 - value for value in values]
        return summarize(values)

    def _size_ratio(self) -> Summary | None:
        if self.profile is None or self.teacher_profile is None:
            return None
        return summarize([100 * self.profile.size_bytes / self.teacher_profile.size_bytes])


def needed_files(experiment: Experiment, tables: Iterable[str] | None = None) -> dict[str, set[str]]:
    """The files that the cells of some tables, or all, are filled with: metrics.json, profile.json or both, by run."""
    needed: dict[str, set[str]] = {}
    for table in [experiment.config.tables[name] for name in (experiment.config.tables if tables is None else tables)]:
        for run in table.runs():
            needed.setdefault(run, set()).update(COLUMNS[column].file for column in table.columns)
            teacher = experiment.teacher(run)
            if teacher is not None and "size_ratio" in table.columns:
                needed.setdefault(teacher, set()).add("profile.json")
    return needed


def tables_with_figures(experiment: Experiment) -> list[str]:
    """The tables that are drawn too."""
    return [name for name, table in experiment.config.tables.items() if table.figure is not None]


def read_measurements(
    experiment: Experiment, results: Path, tables: Iterable[str] | None = None, *, partial: bool = False
) -> dict[str, Measured]:
    """Read what the cells of some of an experiment's tables, or all, are filled with, by run.

    A partial experiment leaves out what is missing or measured another configuration.

    Raises:
        UserError: a file is damaged or, unless ``partial``, missing or stale; the line names it and the command that
            makes it.
    """
    needed = needed_files(experiment, tables)
    metrics: dict[str, tuple[Metrics, ...]] = {}
    profiles: dict[str, Profile | None] = {}
    for run, files in needed.items():
        if "metrics.json" in files:
            metrics[run] = _read_metrics(experiment, run, results, partial)
        if "profile.json" in files:
            profiles[run] = _read_profile(experiment, run, results, partial)
    return {
        run: Measured(metrics.get(run, ()), profiles.get(run), profiles.get(experiment.teacher(run) or ""))
        for run in needed
    }


def _read_metrics(experiment: Experiment, run: str, results: Path, partial: bool) -> tuple[Metrics, ...]:
    metrics = []
    for seed in experiment.seeds(run):
        path = run_folder(results, experiment.name, run, seed) / "metrics.json"
        command = f"distillery evaluate {experiment.path} {run} --seed {seed}{_elsewhere(results)}"
        metrics.append(_read(Metrics, path, experiment.spec(run, seed).digest, command, partial))
    return tuple(measured for measured in metrics if measured is not None)


def _read_profile(experiment: Experiment, run: str, results: Path, partial: bool) -> Profile | None:
    command = f"distillery profile {experiment.path} {run}{_elsewhere(results)}"
    return _read(Profile, profile_path(results, experiment.name, run), experiment.spec(run).digest, command, partial)


def _elsewhere(results: Path) -> str:
    return "" if results == Path("results") else f" --results {results}"


Model = TypeVar("Model", bound=_Measurement)


def _read(model: type[Model], path: Path, digest: str, command: str, partial: bool) -> Model | None:
    """Read a measurement; None if a partial experiment can do without it."""
    if partial and not path.is_file():
        return None
    measurement = validate(model, read_json(path, command), path)
    if measurement.digest == digest:
        return measurement
    if partial:
        return None
    raise UserError(
        f"{path}: measured another configuration of the run (its digest is {measurement.digest}, now it is "
        f"{digest}); train the run anew, then: {command}"
    )


def read_json(path: Path, command: str) -> Mapping[str, Any]:
    """Read a results file.

    Raises:
        UserError: it is missing or damaged; the line says which command makes it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; first make it with: {command}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise UserError(f"{path}: cannot be read: {reason}; make it anew with: {command}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a mapping of names to values; make it anew with: {command}")
    return content
