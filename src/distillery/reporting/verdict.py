"""Was a published number reproduced? One rule for every table, stated here and in the legend of the experiment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distillery.experiment.schema.columns import COLUMNS, Column, Summary
from distillery.reporting.published import Published, load_published

Finding = Literal["reproduced", "within noise", "not reproduced", "not comparable", "not run"]

# One-sided: a result that is better than the published one never speaks against a method.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    """What comes of a comparison.

    ``difference`` is ours minus published. ``tolerance`` is the largest shortfall, beyond the rounding of the published
    number, that noise explains; both are None where nothing was compared.
    """

    finding: Finding
    difference: float | None = None
    tolerance: float | None = None


def judge(column: Column, measured: Summary | None, selection: str, images: int, published: Published) -> Verdict:
    """Compare the mean over our seeds with a published number.

    - `not run`: there is nothing of ours to compare.
    - `not comparable`: one side chose its epoch by the images that it is scored on, the other did not (the last epoch,
      or the best one by held-out images); or both are times, which were taken on different machines. A source that does
      not name its epoch is compared as if it did as we do; imported weights have no epoch of ours to choose.
    - `reproduced`: ours is at least as good as the published number may be by the digits it was printed with.
    - `within noise`: ours falls short of that by no more than the tolerance, below.
    - `not reproduced`: ours falls short by more.

    The tolerance is that of a one-sided t-test at 5 % between the means of our n runs and the published n (one where
    the source does not say). Spreads known on both sides are taken as they are (Welch's test); one alone stands for
    both. With no spread at all (one seed, none published), a share of the N = ``images`` validation images is given the
    standard deviation sqrt(p (1 - p) / N) of N independent images of equal difficulty: real images are easy or hard for
    every network, so equal networks differ by less, and the tolerance errs on the generous side. Other measures then
    have no tolerance.

    What follows from the architecture alone (parameters, operations, size) is `reproduced` if it equals the published
    number by its digits, and else `not reproduced`.
    """
    if measured is None:
        return Verdict("not run")
    flattered = selection == "best"
    if selection in ("last", "best", "holdout") and published.selection not in (None, "best" if flattered else "last"):
        return Verdict("not comparable")
    if column.timed:
        return Verdict("not comparable")
    value = float(published.value)
    difference = measured.mean - value
    # What is decimal on paper is not in binary: without this, 76.125 might fall short of 76.13 +- 0.005.
    rounding = published.rounding + 1e-12 * abs(value)
    if column.better is None:
        return Verdict("reproduced" if abs(difference) <= rounding else "not reproduced", difference, 0.0)
    tolerance = noise(column, measured, images, published)
    shortfall = (-difference if column.better == "higher" else difference) - rounding
    if shortfall <= 0:
        return Verdict("reproduced", difference, tolerance)
    return Verdict("within noise" if shortfall <= tolerance else "not reproduced", difference, tolerance)


def noise(column: Column, measured: Summary, images: int, published: Published) -> float:
    """The largest shortfall of our mean that a one-sided t-test at 5 % does not call significant."""
    from scipy.special import ndtri, stdtrit

    our_n, their_n = measured.n, published.n or 1
    ours, theirs = measured.std, None if published.std is None else float(published.std)
    if ours is not None and theirs is not None:
        error = math.hypot(ours / math.sqrt(our_n), theirs / math.sqrt(their_n))
        return error * float(stdtrit(_welch_freedom(ours, our_n, theirs, their_n), CONFIDENCE)) if error else 0.0
    mean_error = math.sqrt(1 / our_n + 1 / their_n)
    if ours is not None:
        return ours * mean_error * float(stdtrit(our_n - 1, CONFIDENCE))
    if theirs is not None:
        return theirs * mean_error * float(stdtrit(their_n - 1, CONFIDENCE))
    if not column.share:
        return 0.0
    p = float(published.value) / 100
    return 100 * math.sqrt(p * (1 - p) / images) * mean_error * float(ndtri(CONFIDENCE))


def _welch_freedom(ours: float, our_n: int, theirs: float, their_n: int) -> float:
    """Degrees of freedom of a difference of two means (Welch-Satterthwaite); not both spreads are zero."""
    # Only the ratio counts, and squares of tiny spreads would vanish.
    largest = max(ours, theirs)
    a, b = (ours / largest) ** 2 / our_n, (theirs / largest) ** 2 / their_n
    return (a + b) ** 2 / (a**2 / (our_n - 1) + b**2 / (their_n - 1))


def missed_top1(ledger: Path, run: str, top1: float, images: int, record: Mapping[str, Any]) -> str | None:
    """Say that a network scores less top-1 (%) than was published for it, by more than noise explains; None if not so.

    ``record`` is its run.json; of several published numbers (one a table) the first is taken.

    Raises:
        UserError: the ledger of published numbers is damaged.
    """
    column = COLUMNS["top1"]
    known = [number for number in load_published(ledger) if number.run == run]
    numbers = [number for number in known if number.metric in ("top1", column.complement)]
    if not numbers:
        return None
    number = numbers[0].in_column("top1")
    held_out = record["selection"] == "best" and record.get("selection_split") == "holdout"
    selection = "holdout" if held_out else record["selection"]
    verdict = judge(column, Summary(top1, None, 1), selection, images, number)
    if verdict.finding != "not reproduced":
        return None
    return (
        f"{run} scores {top1:.2f} % top-1, but {ledger}: row {number.row} says {number.value}, and noise explains a "
        f"shortfall of {verdict.tolerance:.2f} at most; are these the images, the classes and the preparation that "
        "it was made for?"
    )
