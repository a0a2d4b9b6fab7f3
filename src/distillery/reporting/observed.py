"""An experiment's tables, verdicts and figures, shown to the trackers that the machine has chosen."""

import csv
from collections.abc import Sequence
from pathlib import Path

from distillery.experiment.experiment import Experiment
from distillery.paths import figure_folder, table_folder
from distillery.tracking import Scalar, Tracked, Trackers

# Of what stands in a table's CSV, by run and metric.
JUDGED = ("mean", "std", "n", "published", "difference", "verdict", "low", "high", "p_holm")


def show_tables(experiment: Experiment, results: Path, trackers: Sequence[str]) -> None:
    """Give the tables of an experiment, as they were written, to trackers: rows, verdicts, and the page."""
    if not trackers:
        return
    folder = table_folder(results)
    with (folder / f"{experiment.name}.csv").open(encoding="utf-8", newline="") as file:
        columns, *rows = csv.reader(file)
    facts: dict[str, Scalar] = {}
    for row in rows:
        cells = dict(zip(columns, row, strict=True))
        for key in JUDGED:
            if cells.get(key):
                facts[f"{cells['run']}/{cells['metric']}/{key}"] = _scalar(cells[key])
    observers = Trackers(trackers, _page(experiment))
    observers.tell("note", facts)
    observers.tell("table", "tables", columns, rows, folder / f"{experiment.name}.html")
    observers.end()


def show_figures(experiment: Experiment, results: Path, trackers: Sequence[str]) -> None:
    """Give an experiment's figures to trackers."""
    if not trackers:
        return
    observers = Trackers(trackers, _page(experiment))
    for path in sorted(figure_folder(results, experiment.name).glob("*.png")):
        observers.tell("picture", path.stem, path)
    observers.end()


def _page(experiment: Experiment) -> Tracked:
    """The experiment beside its runs: one thing, however often its tables are made."""
    project = f"{experiment.name}{'-rehearsal' if experiment.rehearsal else ''}"
    return Tracked(project, "tables", "tables", f"{project}-tables", {"experiment": experiment.name})


def _scalar(text: str) -> Scalar:
    try:
        return float(text)
    except ValueError:
        return text
