"""Read what was measured: metrics.json of each seed and profile.json of each run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt

from distillery.config import Page
from distillery.config.reading import validate
from distillery.errors import UserError
from distillery.layout import profile_path, run_folder
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


@dataclass(frozen=True)
class Measured:
    """What is known of a run: the metrics of its seeds, its profile, or both, as far as they were asked for."""

    metrics: tuple[Metrics, ...] = ()
    profile: Profile | None = None

    @property
    def selection(self) -> str:
        """Which epoch's weights were measured: last, best, or those of an imported network."""
        return self.metrics[0].selection if self.metrics else ""

    @property
    def images(self) -> int:
        """How many images each metric is taken over."""
        return self.metrics[0].images if self.metrics else 0

    def summary(self, metric: str) -> Summary | None:
        """One column's value over the seeds; None where it has none, as the agreement of a run without a teacher."""
        column = COLUMNS[metric]
        sources: tuple[BaseModel, ...] = self.metrics
        if column.file == "profile.json":
            sources = () if self.profile is None else (self.profile,)
        values = [getattr(source, column.key) for source in sources]
        if not values or None in values:
            return None
        if metric in ("error1", "error5"):
            values = [100 - value for value in values]
        return summarize(values)


def read_measurements(page: Page, results: Path) -> dict[str, Measured]:
    """Read what the cells of a page's tables are filled with, by run.

    Raises:
        UserError: a file is missing, damaged, or measured another configuration; the line names it and the command
            that makes it.
    """
    needed: dict[str, set[str]] = {}
    for table in page.experiment.tables.values():
        for run in table.runs():
            needed.setdefault(run, set()).update(COLUMNS[column].file for column in table.columns)
    return {run: _read_run(page, run, files, results) for run, files in needed.items()}


def _read_run(page: Page, run: str, files: set[str], results: Path) -> Measured:
    elsewhere = "" if results == Path("results") else f" --results {results}"
    metrics: list[Metrics] = []
    if "metrics.json" in files:
        for seed in page.seeds(run):
            path = run_folder(results, page.name, run, seed) / "metrics.json"
            command = f"distillery evaluate {page.path} {run} --seed {seed}{elsewhere}"
            metrics.append(_read(Metrics, path, page.spec(run, seed).digest, command))
    profile = None
    if "profile.json" in files:
        command = f"distillery profile {page.path} {run}{elsewhere}"
        profile = _read(Profile, profile_path(results, page.name, run), page.spec(run).digest, command)
    return Measured(tuple(metrics), profile)


Model = TypeVar("Model", bound=_Measurement)


def _read(model: type[Model], path: Path, digest: str, command: str) -> Model:
    measurement = validate(model, read_json(path, command), path)
    if measurement.digest != digest:
        raise UserError(
            f"{path}: measured another configuration of the run (its digest is {measurement.digest}, now it is "
            f"{digest}); train the run anew, then: {command}"
        )
    return measurement


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
