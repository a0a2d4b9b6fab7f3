"""Two runs side by side: what differs in how they were made, in what they score, and in which images they get right.

S seeds that both have, N validation images, C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.ledger import differences
from distillery.experiment.schema.columns import COLUMNS, METRICS, summarize
from distillery.reporting.measurements import Measured, read_run
from distillery.reporting.statistics import paired_gain
from distillery.reporting.tables import describe_gain

# Those that stand in metrics.json as they are.
COMPARED = [
    name for name, column in COLUMNS.items() if column.file == METRICS and column.compute is None and not column.paired
]
CLASSES = 10  # that are listed


@dataclass(frozen=True)
class Side:
    """A run of an experiment."""

    experiment: Experiment
    run: str

    @property
    def name(self) -> str:
        """What it is called beside runs of other experiments."""
        return f"{self.experiment.name}/{self.run}"


def common_seeds(run: Side, baseline: Side) -> list[int]:
    """The seeds that both runs are made with, in order.

    Raises:
        UserError: there are none, or the runs are of different images, and so cannot be compared image by image.
    """
    ours, theirs = run.experiment.seeds(run.run), baseline.experiment.seeds(baseline.run)
    datasets = [side.experiment.config.dataset for side in (run, baseline)]
    if datasets[0] != datasets[1]:
        raise UserError(f"{run.name} is of the data set {datasets[0]}, but {baseline.name} of {datasets[1]}")
    if not set(ours) & set(theirs):
        seeds = [", ".join(map(str, found)) for found in (ours, theirs)]
        raise UserError(
            f"{run.name} has seeds {seeds[0]}, but {baseline.name} has {seeds[1]}; runs are compared seed by seed, so "
            "give them one in common"
        )
    return sorted(set(ours) & set(theirs))


def describe_specs(run: Side, baseline: Side, seed: int) -> Iterator[str]:
    """What differs between two runs' specs, key by key."""
    ours, theirs = (side.experiment.spec(side.run, seed).ledger for side in (run, baseline))
    found = differences(theirs, ours)
    yield f"{run.name} against {baseline.name}{', whose specs are the same' if not found else ', by their specs:'}"
    yield from (f"  {line}" for line in found)


def read_both(run: Side, baseline: Side, seeds: Sequence[int], results: Path) -> tuple[Measured, Measured]:
    """The metrics of both runs with some seeds.

    Raises:
        UserError: some are missing, stale or damaged; the line names the command that makes them.
    """
    ours, theirs = (read_run(side.experiment, side.run, results, COMPARED, seeds) for side in (run, baseline))
    return ours, theirs


def describe_metrics(run: Side, baseline: Side, measured: tuple[Measured, Measured], seeds: Sequence[int]) -> str:
    """A table of the metrics that both have, with differences paired by seed."""
    rows = []
    for name in COMPARED:
        column = COLUMNS[name]
        values = [side.by_seed(column.key) for side in measured]
        if not all(values):
            continue
        ours, theirs = ([found[seed] for seed in seeds] for found in values)
        means = [column.show(summarize(found).mean) for found in (ours, theirs)]
        rows.append([column.heading, *means, describe_gain(paired_gain(ours, theirs), column)])
    return _table(["Metric", *_names(run, baseline), f"Difference (n = {len(seeds)})"], rows)


def describe_predictions(
    run: Side,
    baseline: Side,
    labels_N: NDArray[np.int64],
    predicted: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> str:
    """A table of how many images both, one or neither run gets right, by seed."""
    rows = []
    for seed, (ours_N, theirs_N) in predicted.items():
        ours, theirs = ours_N == labels_N, theirs_N == labels_N
        counts = [np.sum(ours & theirs), np.sum(ours & ~theirs), np.sum(theirs & ~ours), np.sum(~ours & ~theirs)]
        agreement = f"{100 * np.mean(ours_N == theirs_N):.2f}"
        rows.append([str(seed), agreement, *(f"{count:,}" for count in counts)])
    names = _names(run, baseline)
    return _table(["Seed", "Agreement (%)", "Both right", *(f"Only {name} right" for name in names), "Neither"], rows)


def describe_classes(
    run: Side,
    baseline: Side,
    classes: Sequence[str],
    labels_N: NDArray[np.int64],
    predicted: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> str:
    """A table of the classes whose top-1, the mean over seeds, differs most."""
    count_C = np.bincount(labels_N, minlength=len(classes))
    right_2C = np.zeros((2, len(classes)))
    for pair in predicted.values():
        for row, predicted_N in zip(right_2C, pair, strict=True):
            row += np.bincount(labels_N[predicted_N == labels_N], minlength=len(classes))
    top1_2C = 100 * right_2C / (np.maximum(count_C, 1) * len(predicted))
    difference_C = top1_2C[0] - top1_2C[1]
    show = COLUMNS["top1"]
    rows = [
        [classes[c], f"{count_C[c]:,}", *(show.show(value) for value in top1_2C[:, c]),
         show.show_difference(difference_C[c])]
        for c in np.argsort(-np.abs(difference_C), kind="stable")[:CLASSES]
        if difference_C[c]
    ]  # fmt: skip
    if not rows:
        return "Every class has the same top-1."
    return _table(["Class", "Images", *(f"Top-1 of {name}" for name in _names(run, baseline)), "Difference"], rows)


def _names(run: Side, baseline: Side) -> tuple[str, str]:
    """Names as short as they can be told apart by."""
    return (run.run, baseline.run) if run.experiment.name == baseline.experiment.name else (run.name, baseline.name)


def _table(headings: list[str], rows: list[list[str]]) -> str:
    from tabulate import tabulate

    align = ["left", *("right" for _ in headings[1:])]
    return tabulate(rows, headers=headings, tablefmt="github", colalign=align if rows else None, disable_numparse=True)
