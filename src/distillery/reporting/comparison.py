"""Two runs side by side: what differs in how they were made, in what they score, and in which images they get right.

S seeds that both have, N validation images, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distillery.errors import UserError
from distillery.experiment import Experiment
from distillery.experiment.ledger import differences, with_names
from distillery.experiment.schema.columns import COLUMNS, METRICS, summarize
from distillery.reporting.measurements import Measured, read_run
from distillery.reporting.sheets import describe_gain
from distillery.reporting.statistics import Gain, paired_gain

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


@dataclass(frozen=True)
class Comparison:
    """What is known of two runs: by key, by metric, by seed and image, and by class, most different first."""

    run: str
    baseline: str
    seeds: list[int]
    specs: list[str]
    metrics: list[dict[str, Any]]
    images: list[dict[str, Any]]
    classes: list[dict[str, Any]]

    def as_data(self) -> dict[str, Any]:
        """Plain data, for programs."""
        return asdict(self)

    def as_text(self) -> str:
        """Four parts, the last three of them tables."""
        same = not self.specs
        lines = [f"{self.run} against {self.baseline}{', whose specs are the same' if same else ', by their specs:'}"]
        # Names as short as they can be told apart by.
        pairs = [name.split("/", 1) for name in (self.run, self.baseline)]
        names = [run for _, run in pairs] if pairs[0][0] == pairs[1][0] else [self.run, self.baseline]
        return "\n\n".join(
            [
                "\n".join([*lines, *(f"  {line}" for line in self.specs)]),
                self._metrics(names),
                self._images(names),
                self._classes(names) if self.classes else "Every class has the same top-1.",
            ]
        )

    def _metrics(self, names: list[str]) -> str:
        rows = []
        for row in self.metrics:
            column = COLUMNS[row["metric"]]
            gain = Gain(**row["difference"])
            rows.append(
                [column.heading, column.show(row["run"]), column.show(row["baseline"]), describe_gain(gain, column)]
            )
        return _table(["Metric", *names, f"Difference (n = {len(self.seeds)})"], rows)

    def _images(self, names: list[str]) -> str:
        keys = ("both_right", "only_run_right", "only_baseline_right", "neither_right")
        rows = [
            [str(row["seed"]), f"{row['agreement']:.2f}", *(f"{row[key]:,}" for key in keys)] for row in self.images
        ]
        only = [f"Only {name} right" for name in names]
        return _table(["Seed", "Agreement (%)", "Both right", *only, "Neither"], rows)

    def _classes(self, names: list[str]) -> str:
        show = COLUMNS["top1"]
        rows = [
            [row["class"], f"{row['images']:,}", show.show(row["run"]), show.show(row["baseline"]),
             show.show_difference(row["difference"])]
            for row in self.classes[:CLASSES]
        ]  # fmt: skip
        return _table(["Class", "Images", *(f"Top-1 of {name}" for name in names), "Difference"], rows)


def compare_specs(run: Side, baseline: Side, seed: int) -> list[str]:
    """What differs between two runs' specs, key by key."""
    ours, theirs = (side.experiment.spec(side.run, seed).ledger for side in (run, baseline))
    return with_names(differences(theirs, ours), *(side.experiment.teacher(side.run) for side in (baseline, run)))


def read_both(run: Side, baseline: Side, seeds: Sequence[int], results: Path) -> tuple[Measured, Measured]:
    """The metrics of both runs with some seeds.

    Raises:
        UserError: some are missing, stale or damaged; the line names the command that makes them.
    """
    ours, theirs = (read_run(side.experiment, side.run, results, COMPARED, seeds) for side in (run, baseline))
    return ours, theirs


def compare_metrics(measured: tuple[Measured, Measured], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The metrics that both have: means over seeds, and differences paired by seed."""
    rows = []
    for name in COMPARED:
        values = [side.by_seed(COLUMNS[name].key) for side in measured]
        if not all(values):
            continue
        ours, theirs = ([found[seed] for seed in seeds] for found in values)
        means = [summarize(found).mean for found in (ours, theirs)]
        gain = asdict(paired_gain(ours, theirs))
        rows.append({"metric": name, "run": means[0], "baseline": means[1], "difference": gain})
    return rows


def compare_images(
    labels_N: NDArray[np.int64], predicted: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> list[dict[str, Any]]:
    """How many images both, one or neither run gets right, by seed."""
    rows = []
    for seed, (ours_N, theirs_N) in predicted.items():
        ours, theirs = ours_N == labels_N, theirs_N == labels_N
        rows.append(
            {
                "seed": seed,
                "agreement": 100 * float(np.mean(ours_N == theirs_N)),
                "both_right": int(np.sum(ours & theirs)),
                "only_run_right": int(np.sum(ours & ~theirs)),
                "only_baseline_right": int(np.sum(theirs & ~ours)),
                "neither_right": int(np.sum(~ours & ~theirs)),
            }
        )
    return rows


def compare_classes(
    classes: Sequence[str],
    labels_N: NDArray[np.int64],
    predicted: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> list[dict[str, Any]]:
    """The classes whose top-1, the mean over seeds, differs, the most different first."""
    count_C = np.bincount(labels_N, minlength=len(classes))
    right_2C = np.zeros((2, len(classes)))
    for pair in predicted.values():
        for row, predicted_N in zip(right_2C, pair, strict=True):
            row += np.bincount(labels_N[predicted_N == labels_N], minlength=len(classes))
    top1_2C = 100 * right_2C / (np.maximum(count_C, 1) * len(predicted))
    difference_C = top1_2C[0] - top1_2C[1]
    return [
        {
            "class": classes[c],
            "images": int(count_C[c]),
            "run": float(top1_2C[0, c]),
            "baseline": float(top1_2C[1, c]),
            "difference": float(difference_C[c]),
        }
        for c in np.argsort(-np.abs(difference_C), kind="stable")
        if difference_C[c]
    ]


def _table(headings: list[str], rows: list[list[str]]) -> str:
    from tabulate import tabulate

    align = ["left", *("right" for _ in headings[1:])]
    return tabulate(rows, headers=headings, tablefmt="github", colalign=align if rows else None, disable_numparse=True)
