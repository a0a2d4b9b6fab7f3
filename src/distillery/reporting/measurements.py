"""Read what was measured: metrics.json and probes.json of each seed, and profile.json of each run."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, PositiveInt

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.reading import validate
from distillery.experiment.schema.columns import COLUMNS, METRICS, PROBES, PROFILE, Column, File
from distillery.experiment.why import images_digest
from distillery.paths import profile_path, run_folder
from distillery.reporting.origins import Origin, read_origins
from distillery.results import command, read_json, record_sha256, unusable


class _Measurement(BaseModel):
    """Part of a results file; the values of columns stand beside it under their keys."""

    model_config = ConfigDict(frozen=True, extra="allow")

    digest: str

    def value(self, key: str) -> Any:  # noqa: ANN401
        """The value under a key; None where it is null or absent."""
        return getattr(self, key, None)


class Metrics(_Measurement):
    """What metrics.json, and probes.json, says of its values."""

    images: PositiveInt
    selection: Literal["last", "best", "imported"]
    # Not in metrics of the first releases, which chose by the validation images.
    selection_split: Literal["holdout", "val"] | None = None
    weights_sha256: str | None = None
    record_sha256: str | None = None


class Profile(_Measurement):
    """What profile.json says of its values."""

    throughput_batch: PositiveInt
    device: str
    threads: PositiveInt | None
    # Not in profiles of the first releases.
    cpu: str | None = None
    cpu_threads: PositiveInt | None = None


@dataclass(frozen=True)
class Measured:
    """What is known of a run: the metrics and probes of its seeds, and its profile, as far as they were asked for."""

    metrics: tuple[Metrics, ...] = ()
    seeds: tuple[int, ...] = ()  # of the metrics, in their order
    profile: Profile | None = None
    probes: tuple[Metrics, ...] = ()
    origins: frozenset[Origin] = frozenset()

    def values(self, file: File, key: str) -> list[float]:
        """What a file holds under a key: a value a seed, or the profile's one; none where it is null or not read."""
        values = [source.value(key) for source in self._sources(file)]
        return [] if None in values else values

    def _sources(self, file: File) -> Sequence[_Measurement]:
        if file == PROFILE:
            return () if self.profile is None else (self.profile,)
        return self.metrics if file == METRICS else self.probes

    @property
    def n(self) -> int:
        """How many seeds were measured."""
        return len(self.metrics or self.probes)

    def by_seed(self, key: str) -> dict[int, float]:
        """The values of a key of metrics.json, by seed; empty where one is null."""
        values = self.values(METRICS, key)
        return dict(zip(self.seeds, values, strict=True)) if values else {}

    def holds(self, metric: str) -> bool:
        """Whether what a column is taken from was read."""
        return bool(self._sources(COLUMNS[metric].file))

    def complete(self, files: set[str], seeds: int) -> bool:
        """Whether all was read that the tables show of the run."""
        expected: dict[File, int] = {METRICS: seeds, PROBES: seeds, PROFILE: 1}
        return all(len(self._sources(file)) == count for file, count in expected.items() if file in files)

    @property
    def selection(self) -> str:
        """Which epoch's weights were measured: last, best, best by held-out images, or an imported network's."""
        if not self.n:
            return ""
        first = (self.metrics or self.probes)[0]
        return "holdout" if (first.selection, first.selection_split) == ("best", "holdout") else first.selection

    @property
    def images(self) -> int:
        """How many images each metric is taken over."""
        return (self.metrics or self.probes)[0].images if self.n else 0


def needed_files(experiment: Experiment, tables: Iterable[str] | None = None) -> dict[str, set[str]]:
    """The files that some tables, or all, are made from, by run.

    Their cells are filled with metrics.json, probes.json and profile.json; run.json says which version made the run.
    """
    return {
        run: {"run.json", *(COLUMNS[column].file for column in columns)}
        for run, columns in _needed_columns(experiment, tables).items()
    }


def _needed_columns(experiment: Experiment, tables: Iterable[str] | None) -> dict[str, set[str]]:
    """The columns that some tables, or all, show of each run, or compute from what is known of it.

    A run may be known as a teacher or as a baseline that stands in no row.
    """
    needed: dict[str, set[str]] = {}
    for table in [experiment.config.tables[name] for name in (experiment.config.tables if tables is None else tables)]:
        for run in table.runs():
            needed.setdefault(run, set()).update(table.columns)
            teacher = experiment.teacher(run)
            of_teacher = {column for column in table.columns if COLUMNS[column].teacher_file is not None}
            if teacher is not None and of_teacher:
                needed.setdefault(teacher, set()).update(of_teacher)
        if table.baseline is not None:
            needed.setdefault(table.baseline, set()).update(table.paired)
    return needed


def tables_with_figures(experiment: Experiment) -> list[str]:
    """The tables that are drawn too."""
    return [name for name, table in experiment.config.tables.items() if table.drawn]


def read_measurements(
    experiment: Experiment,
    results: Path,
    tables: Iterable[str] | None = None,
    *,
    partial: bool = False,
    origins: bool = False,
) -> dict[str, Measured]:
    """Read what the cells of some of an experiment's tables, or all, are filled with, by run.

    A partial experiment leaves out what is missing or measured another configuration. With ``origins``, run.json is
    read too.

    Raises:
        UserError: a file is damaged or, unless ``partial``, missing or stale; the line names it and the command that
            makes it.
    """
    runs, images = {}, images_digest(results, experiment.config.dataset)
    for run, columns in _needed_columns(experiment, tables).items():
        metrics = _read_metrics(experiment, run, results, columns, partial, images)
        probes = _read_metrics(experiment, run, results, columns, partial, images, file=PROBES)
        runs[run] = Measured(
            tuple(metrics.values()),
            tuple(metrics),
            _read_profile(experiment, run, results, columns, partial),
            tuple(probes.values()),
            read_origins(experiment, run, results, partial=partial) if origins else frozenset(),
        )
    return runs


def read_run(experiment: Experiment, run: str, results: Path, columns: Iterable[str], seeds: Sequence[int]) -> Measured:
    """Read what some columns of metrics.json say of some seeds of a run.

    Raises:
        UserError: a file is missing, stale or damaged.
    """
    images = images_digest(results, experiment.config.dataset)
    metrics = _read_metrics(experiment, run, results, set(columns), False, images, seeds)
    return Measured(tuple(metrics.values()), tuple(metrics))


def _read_metrics(
    experiment: Experiment,
    run: str,
    results: Path,
    columns: set[str],
    partial: bool,
    images: object,
    seeds: Sequence[int] | None = None,
    file: File = METRICS,
) -> dict[int, Metrics]:
    """The metrics, or probes, of a run by seed, of all seeds by default, of images of this digest."""
    shown = _taken_from(file, columns)
    metrics = {}
    for seed in (experiment.seeds(run) if seeds is None else seeds) if shown else ():
        path = run_folder(results, experiment.name, run, seed) / file
        made_by = command("evaluate" if file == METRICS else "probe", experiment.path, run, seed, results)
        measured = _read(Metrics, path, experiment.spec(run, seed).digest, shown, made_by, partial)
        if measured is None:
            continue
        trained_by = command("train", experiment.path, run, seed, results)
        theirs = _checked_images(measured, path, trained_by, made_by)
        if None not in (images, theirs) and theirs != images:
            if partial:
                continue
            raise UserError(
                f"{path}: measured on other images than {experiment.config.dataset} now holds (their digest is "
                f"{str(theirs)[:16]}, now it is {str(images)[:16]}); first: {trained_by}, then: {made_by}"
            )
        metrics[seed] = measured
    return metrics


def _checked_images(measured: Metrics, path: Path, trained_by: str, made_by: str) -> Any:  # noqa: ANN401
    """See that metrics are of the run whose record and weights lie beside them; the digest of its images, if known."""
    if measured.record_sha256 is None:
        return None  # of the first releases
    record = read_json(path.with_name("run.json"), trained_by)
    if measured.record_sha256 != record_sha256(record) or measured.weights_sha256 != record.get("weights_sha256"):
        raise unusable(path, f"measured another network than {path.with_name('run.json')} is about", made_by)
    return record.get("manifest_digest")


def _read_profile(experiment: Experiment, run: str, results: Path, columns: set[str], partial: bool) -> Profile | None:
    shown = _taken_from(PROFILE, columns)
    if not shown:
        return None
    path, made_by = profile_path(results, experiment.name, run), command("profile", experiment.path, run, None, results)
    return _read(Profile, path, experiment.spec(run).digest, shown, made_by, partial)


def _taken_from(file: File, columns: set[str]) -> list[Column]:
    """Those of some columns that are taken from a file."""
    return [column for name, column in COLUMNS.items() if name in columns and column.file == file]


Model = TypeVar("Model", bound=_Measurement)


def _read(
    model: type[Model], path: Path, digest: str, shown: list[Column], made_by: str, partial: bool
) -> Model | None:
    """Read a measurement; None if a partial experiment can do without it."""
    if partial and not path.is_file():
        return None
    measurement = validate(model, read_json(path, made_by), path)
    if measurement.digest != digest:
        if partial:
            return None
        raise UserError(
            f"{path}: measured another configuration of the run (its digest is {measurement.digest}, now it is "
            f"{digest}); train the run again, then: {made_by}"
        )
    for column in shown:
        _check_value(measurement, column, path, made_by)
    return measurement


def _check_value(measurement: _Measurement, column: Column, path: Path, made_by: str) -> None:
    value, (low, high) = measurement.value(column.key), column.bounds
    if value is None and column.optional:
        return
    if value is None and column.key not in (measurement.model_extra or {}):
        raise unusable(path, f"lacks {column.key!r}", made_by)
    if not isinstance(value, (int, float)) or not low <= value <= high or math.isinf(value):
        expected = f"from {low:g} to {high:g}" if math.isfinite(high) else f"not below {low:g}"
        raise unusable(path, f"{column.key}: {value!r} is not valid; expected a number {expected}", made_by)
