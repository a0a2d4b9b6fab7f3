"""Read history.csv: what a run told after each epoch."""

import csv
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.paths import run_folder

NEEDED = ("epoch", "train_loss", "val_top1")


def read_histories(experiment: Experiment, run: str, results: Path) -> list[dict[str, NDArray[np.float64]]]:
    """Read the histories of a trained run, one a seed, each a column (E,) by name; all have the same epochs.

    Raises:
        UserError: a file is missing or damaged, or the seeds were trained for different numbers of epochs.
    """
    elsewhere = "" if results == Path("results") else f" --results {results}"
    histories: list[dict[str, NDArray[np.float64]]] = []
    for seed in experiment.seeds(run):
        path = run_folder(results, experiment.name, run, seed) / "history.csv"
        command = f"distillery train {experiment.path} {run} --seed {seed}{elsewhere}"
        history = read_history(path, command)
        first = histories[0] if histories else history
        if not np.array_equal(history["epoch"], first["epoch"]):
            raise UserError(
                f"{path}: ends at epoch {history['epoch'][-1]:.0f}, but seed {experiment.seeds(run)[0]} at "
                f"{first['epoch'][-1]:.0f}; make it anew with: {command}"
            )
        histories.append(history)
    return histories


def has_histories(experiment: Experiment, run: str, results: Path) -> bool:
    """Whether every seed of a trained run has told of its epochs."""
    return all(
        (run_folder(results, experiment.name, run, seed) / "history.csv").is_file() for seed in experiment.seeds(run)
    )


def read_history(path: Path, command: str) -> dict[str, NDArray[np.float64]]:
    """Read one history as columns (E,); what is infinite or left empty is NaN, so that a curve has a gap there.

    Raises:
        UserError: the file is missing or damaged; the line says which command makes it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; first make it with: {command}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}; make it anew with: {command}") from None
    header, *rows = [*csv.reader(io.StringIO(text))] or [[]]
    for name in NEEDED:
        if name not in header:
            raise UserError(f"{path}: row 1: no column {name!r}; make it anew with: {command}")
    if not rows:
        raise UserError(f"{path}: has no epochs yet; finish it with: {command}")
    numbers = [[_number(cell) for cell in cells] for cells in rows]
    for row, (cells, values) in enumerate(zip(rows, numbers, strict=True), start=2):
        if len(cells) != len(header) or None in values:
            wrong = next((cell for cell, value in zip(cells, values, strict=True) if value is None), ",".join(cells))
            raise UserError(f"{path}: row {row}: {wrong!r} is not valid; make it anew with: {command}")
    return {name: np.array([row[index] for row in numbers], dtype=float) for index, name in enumerate(header)}


def _number(text: str) -> float | None:
    """None if the text is no number."""
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else math.nan
