"""Read history.csv: what a run reported after each epoch."""

import csv
import io
import math
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.paths import run_folder
from distillery.results import command, file_hash, read_text, try_json, unusable

NEEDED = ("epoch", "train_loss", "val_top1")


def read_histories(
    experiment: Experiment, run: str, results: Path, *, partial: bool = False
) -> list[dict[str, NDArray[np.float64]]]:
    """Read the histories of a trained run, one a seed, each a column (E,) by name; all have the same epochs.

    With ``partial``, those of the seeds that have come furthest, none before the first epoch has ended.

    Raises:
        UserError: a file is missing, stale or damaged, or the seeds were trained for different numbers of epochs.
    """
    histories: list[dict[str, NDArray[np.float64]]] = []
    for seed in experiment.seeds(run):
        path = run_folder(results, experiment.name, run, seed) / "history.csv"
        made_by = command("train", experiment.path, run, seed, results)
        if partial and not _has_epochs(path):
            continue
        if not partial:
            _check_record(path, experiment, run, seed, made_by)
        history = read_history(path, made_by)
        ahead = len(history["epoch"]) - len(histories[0]["epoch"]) if histories else 0
        if partial and ahead:
            histories = [history] if ahead > 0 else histories
            continue
        first = histories[0] if histories else history
        if not np.array_equal(history["epoch"], first["epoch"]):
            ends = f"ends at epoch {history['epoch'][-1]:.0f}, but seed {experiment.seeds(run)[0]} at "
            raise unusable(path, f"{ends}{first['epoch'][-1]:.0f}", made_by)
        histories.append(history)
    return histories


def _check_record(path: Path, experiment: Experiment, run: str, seed: int, made_by: str) -> None:
    """See that a history is the one that the finished run beside it is about, as far as its run.json says."""
    record = try_json(path.with_name("run.json")) or {}
    # It may be of weights that lie elsewhere, and is needed only where there is something to compare.
    if "digest" in record and record["digest"] != (digest := experiment.spec(run, seed).digest):
        raise unusable(path, f"of another configuration of the run ({record['digest']}, now {digest})", made_by)
    if "history_sha256" in record and path.is_file() and file_hash(path) != record["history_sha256"]:
        raise unusable(path, "not the history that its run.json is about", made_by)


def _has_epochs(path: Path) -> bool:
    """Whether a run has reported an epoch: below the header that it begins with there is a row."""
    with suppress(OSError):
        return path.is_file() and len(path.read_bytes().splitlines()) != 1
    return True


def read_history(path: Path, made_by: str) -> dict[str, NDArray[np.float64]]:
    """Read one history as columns (E,); what is infinite or left empty is NaN, so that a curve has a gap there.

    Raises:
        UserError: the file is missing or damaged; the line says which command makes it.
    """
    text = read_text(path, made_by)
    try:
        header, *rows = [*csv.reader(io.StringIO(text))] or [[]]
    except csv.Error as error:
        raise unusable(path, f"not valid CSV: {error}", made_by) from None
    for name in NEEDED:
        if name not in header:
            raise unusable(path, f"row 1: no column {name!r}", made_by)
    if not rows:
        raise UserError(f"{path}: has no epochs yet; finish it with: {made_by}")
    numbers = [[_number(cell) for cell in cells] for cells in rows]
    for row, (cells, values) in enumerate(zip(rows, numbers, strict=True), start=2):
        if len(cells) != len(header) or None in values:
            wrong = next((cell for cell, value in zip(cells, values, strict=True) if value is None), ",".join(cells))
            raise unusable(path, f"row {row}: {wrong!r} is not valid", made_by)
    return {name: np.array([row[index] for row in numbers], dtype=float) for index, name in enumerate(header)}


def _number(text: str) -> float | None:
    """None if the text is no number."""
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else math.nan
