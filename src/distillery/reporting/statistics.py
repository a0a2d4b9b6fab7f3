"""Does it help? The gain of a run over a baseline, paired by seed: interval, p-value, and how many seeds would show it.

The same seed gives both runs the same order of images and, where the networks are alike, the same first weights, so the
difference within a seed says more than that of the means. All tests are two-sided.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

# How often a test may find a gain where there is none, and how often it should find one that is there.
ALPHA = 0.05
POWER = 0.8
# No one trains a network with more seeds than this to find a gain.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Gain:
    """What the differences of a run and a baseline say, over the ``n`` seeds that both have.

    ``std`` is their sample standard deviation, ``low`` and ``high`` the 95 % interval of their mean, ``p`` the paired
    t-test's and ``p_holm`` the same after Holm's correction over the rows of a table.

    - One seed has no spread: std, interval and p are None.
    - Differences that are all zero have p = 1. Another difference that is the same for every seed would have p = 0 by
      the formula, which nobody should believe: that a few seeds changed nothing does not say that others would not.
      Interval and p are None, and so is the interval of zeros.

    ``seeds_needed`` is how many seeds would show a gain of this size; None if nothing is known of the spread or the
    gain is zero, and more than MOST_SEEDS if it is hopeless.
    """

    mean: float
    n: int
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    seeds_needed: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the gain is significant after Holm's correction, for better or for worse."""
        return self.p_holm is not None and self.p_holm < ALPHA


def compare(baseline: Mapping[int, float], rows: Mapping[str, Mapping[int, float]]) -> dict[str, Gain]:
    """The gains of a table's rows over a baseline, each given as values by seed; rows without a common seed have none.

    Holm's correction is over all rows that have a p. A row with a single common seed borrows the spread that it lacks:
    the standard deviations of the other rows' differences, pooled.
    """
    gains = {}
    for name, values in rows.items():
        seeds = sorted(values.keys() & baseline.keys())
        if seeds:
            gains[name] = paired_gain([values[seed] for seed in seeds], [baseline[seed] for seed in seeds])
    tested = {name: gain.p for name, gain in gains.items() if gain.p is not None}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
    pooled = pooled_std(gains.values())
    for name, gain in gains.items():
        std = pooled if gain.n == 1 else gain.std
        needed = None if std is None else seeds_needed(gain.mean, std)
        gains[name] = replace(gain, p_holm=corrected.get(name), seeds_needed=needed)
    return gains


def paired_gain(run: Sequence[float], baseline: Sequence[float]) -> Gain:
    """The mean difference of two runs, with values (S,) in the same order of seeds, at least one."""
    from scipy.special import stdtr, stdtrit

    differences = [ours - theirs for ours, theirs in zip(run, baseline, strict=True)]
    n = len(differences)
    # Differences of decimals differ in their last bits where they are equal on paper.
    rounding = 1e-12 * max(map(abs, [*run, *baseline]))
    mean = statistics.fmean(differences)
    mean = 0.0 if abs(mean) <= rounding else mean
    if n == 1:
        return Gain(mean, n)
    std = statistics.stdev(differences)
    if std <= rounding:
        return Gain(mean, n, 0.0, p=None if mean else 1.0)
    error = std / math.sqrt(n)
    margin = error * float(stdtrit(n - 1, 1 - ALPHA / 2))
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Gain(mean, n, std, mean - margin, mean + margin, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that may each be held against alpha, in the order given."""
    corrected, least = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def pooled_std(gains: Iterable[Gain]) -> float | None:
    """The standard deviation of a difference from seed to seed, from all gains that have one; None if none does."""
    spread = [(gain.n - 1, gain.std) for gain in gains if gain.std]
    freedom = sum(weight for weight, _ in spread)
    return math.sqrt(sum(weight * std**2 for weight, std in spread) / freedom) if freedom else None


def seeds_needed(gain: float, std: float) -> int | None:
    """The fewest seeds with which a paired t-test at ALPHA finds a gain in POWER of all cases; None if nothing decides.

    ``std`` is the standard deviation of a difference. More than MOST_SEEDS is MOST_SEEDS + 1.
    """
    if not gain or not std:
        return None
    low, high = 1, MOST_SEEDS + 1  # too few, and enough as far as anybody cares
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(gain / std, middle) >= POWER else (middle, high)
    return high


def power(effect: float, n: int) -> float:
    """How often a paired t-test at ALPHA with ``n`` seeds, 2 or more, shows a gain of so many standard deviations.

    To find a loss where there is a gain does not count; it is the rarer, the larger the gain.
    """
    from scipy.special import nctdtr, stdtrit

    shift = min(abs(effect) * math.sqrt(n), 1e4)
    missed = float(nctdtr(n - 1, shift, float(stdtrit(n - 1, 1 - ALPHA / 2))))
    # Where the function is not defined, the shift is above 30 and next to nothing is missed.
    return 1.0 if math.isnan(missed) else 1 - missed
