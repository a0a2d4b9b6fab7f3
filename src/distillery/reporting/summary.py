"""Mean and spread of one measure over the seeds of a run."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (n - 1 in the denominator; None for a single value) and number of values."""

    mean: float
    std: float | None
    n: int


def summarize(values: Sequence[float]) -> Summary:
    """Sum up the values of a run's seeds, of which there is at least one.

    Sums are exact before they are rounded, so the order of the seeds changes no bit.
    """
    if len(values) == 1:
        return Summary(values[0], None, 1)
    return Summary(statistics.fmean(values), statistics.stdev(values), len(values))
