"""What stands behind a table's rows: how each run was made, what sets it apart from the row above, and its curve."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.ledger import differences, with_names
from distillery.paths import run_folder
from distillery.reporting.content import Content
from distillery.reporting.history import read_history
from distillery.reporting.measurements import Measured

# The size of a curve, in the units of its drawing.
WIDTH, HEIGHT = 320, 110


@dataclass(frozen=True)
class Curve:
    """Validation top-1 (%) after each epoch: a line a seed as points of a drawing, and the ends of its axes."""

    lines: tuple[str, ...]
    low: float
    high: float
    epochs: int


@dataclass(frozen=True)
class RunNote:
    """A run of a page: facts as (name, text), and what differs from the run above it, if one stands there."""

    run: str
    facts: tuple[tuple[str, str], ...]
    neighbour: str | None
    differences: tuple[str, ...]
    curve: Curve | None


# By (run, neighbour).
Notes = dict[tuple[str, str | None], RunNote]


def note_runs(
    experiment: Experiment,
    contents: Iterable[Content],
    runs: Mapping[str, Measured],
    results: Path,
    made: Notes,
) -> list[RunNote]:
    """Notes of the runs that some tables show, each once, beside its neighbour in the first of them.

    ``made`` holds those of other pages, and takes the new ones.
    """
    neighbours: dict[str, str | None] = {}
    for content in contents:
        above = None
        for run in content.table.runs():
            neighbours.setdefault(run, above)
            above = run
    for run, above in neighbours.items():
        if (run, above) not in made:
            made[run, above] = _note(experiment, run, above, runs.get(run, Measured()), results)
    return [made[pair] for pair in neighbours.items()]


def _note(experiment: Experiment, run: str, neighbour: str | None, measured: Measured, results: Path) -> RunNote:
    spec, *above = (experiment.spec(each, min(experiment.seeds(each))) for each in (run, neighbour) if each is not None)
    # Which seeds a run has is no difference of what it does.
    differing = [line for other in above for line in differences(other.ledger | {"seed": spec.seed}, spec.ledger)]
    differing = with_names(differing, *(experiment.teacher(each) for each in (neighbour or run, run)))
    seeds = sorted(experiment.seeds(run))
    facts = {
        "Model": spec.model,
        "Teacher": " + ".join(experiment.teachers_of(run)),
        "Digest": ", ".join(f"seed {seed}: {experiment.spec(run, seed).digest}" for seed in seeds),
        "Made by": "; ".join(sorted({f"{origin.code}, {', '.join(origin.versions)}" for origin in measured.origins})),
    }
    given = tuple((name, text) for name, text in facts.items() if text)
    return RunNote(run, given, neighbour, tuple(differing), _curve(experiment, run, results))


def _curve(experiment: Experiment, run: str, results: Path) -> Curve | None:
    """The curve of a run that has one; a damaged history is for `distillery verify` to find, and draws nothing."""
    found = []
    for seed in sorted(experiment.seeds(run)):
        try:
            history = read_history(run_folder(results, experiment.name, run, seed) / "history.csv", "")
        except UserError:
            continue
        points = zip(history["epoch"].tolist(), history["val_top1"].tolist(), strict=True)
        found.append([(epoch, top1) for epoch, top1 in points if isfinite(epoch) and isfinite(top1)])
    found = [line for line in found if len(line) > 1]
    if not found:
        return None
    epochs, values = ([point[place] for line in found for point in line] for place in (0, 1))
    (first, last), (low, high) = ((min(axis), max(axis)) for axis in (epochs, values))

    def place(epoch: float, top1: float) -> str:
        x = WIDTH * (epoch - first) / (last - first or 1)
        return f"{x:.1f},{HEIGHT * (1 - (top1 - low) / (high - low or 1)):.1f}"

    return Curve(tuple(" ".join(place(*point) for point in line) for line in found), low, high, int(last))
