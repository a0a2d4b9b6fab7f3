"""Gains over a baseline, against scipy and statsmodels."""

import gc
import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from distillery.reporting.statistics import (
    ALPHA,
    MOST_SEEDS,
    POWER,
    Gain,
    compare,
    holm,
    paired_gain,
    pooled_std,
    power,
    seeds_needed,
)

accuracies = st.floats(0, 100, allow_subnormal=False).map(lambda value: round(value, 3))


@st.composite
def pairs(draw, least=2):
    n = draw(st.integers(least, 12))
    return draw(st.lists(accuracies, min_size=n, max_size=n)), draw(st.lists(accuracies, min_size=n, max_size=n))


@settings(deadline=None)
@given(pairs())
def test_the_paired_test_is_scipys(pair):
    run, baseline = pair
    assume(np.ptp(np.round(np.subtract(run, baseline), 6)) > 0)
    gain, expected = paired_gain(run, baseline), ttest_rel(run, baseline)
    interval = expected.confidence_interval(1 - ALPHA)
    assert gain.mean == pytest.approx(np.mean(np.subtract(run, baseline)), abs=1e-9)
    assert gain.std == pytest.approx(np.std(np.subtract(run, baseline), ddof=1))
    assert (gain.low, gain.high) == pytest.approx((interval.low, interval.high), abs=1e-7)
    assert gain.p == pytest.approx(expected.pvalue, abs=1e-9)


@settings(deadline=None)
@given(pairs())
def test_a_gain_turned_round_is_a_loss_with_the_same_p(pair):
    run, baseline = pair
    there, back = paired_gain(run, baseline), paired_gain(baseline, run)
    assert there.mean == -back.mean
    assert there.p == back.p
    if there.low is not None:
        assert (there.low, there.high) == (-back.high, -back.low)


# statsmodels collects garbage in each call, for half a second each beside the other tests' objects.
@patch.object(gc, "collect", lambda: None)
@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holms_correction_is_that_of_statsmodels(p_values):
    expected = multipletests(p_values, ALPHA, "holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("effect", [0.12, 0.3, 0.5, 0.8, 1.0, 1.7, 3.0, 4.0])
def test_the_seeds_needed_are_those_of_statsmodels(effect):
    def statsmodels(n):
        return TTestPower().power(effect, n, ALPHA)

    needed = seeds_needed(effect, 1.0)
    assert needed == seeds_needed(-2 * effect, 2.0)
    assert statsmodels(needed) >= POWER
    assert needed == 2 or statsmodels(needed - 1) < POWER
    assert power(effect, needed) == pytest.approx(statsmodels(needed), abs=1e-4)


@settings(deadline=None)
@given(st.floats(0.1, 1e15), st.floats(1e-6, 100))
def test_the_seeds_needed_are_the_fewest_that_are_enough(gain, std):
    needed = seeds_needed(gain, std)
    assert 2 <= needed <= MOST_SEEDS + 1
    assert needed > MOST_SEEDS or power(gain / std, needed) >= POWER
    assert needed == 2 or power(gain / std, needed - 1) < POWER


@pytest.mark.parametrize(("gain", "std"), [(0.0, 1.0), (1.0, 0.0)])
def test_without_gain_or_spread_no_number_of_seeds_is_named(gain, std):
    assert seeds_needed(gain, std) is None


def test_one_seed_has_neither_interval_nor_p():
    assert paired_gain([91.5], [90.0]) == Gain(1.5, 1)


def test_equal_values_have_no_gain_and_p_1():
    assert paired_gain([90.1, 91.2, 92.3], [90.1, 91.2, 92.3]) == Gain(0.0, 3, 0.0, p=1.0)


@pytest.mark.parametrize("step", [1.0, 0.1, 100 / 360])
def test_the_same_difference_for_every_seed_is_no_proof(step):
    """In binary, 90.4 - 90.3 is not 10.8 - 10.7."""
    baseline = [10.7, 30.1, 60.2, 90.3]
    gain = paired_gain([value + step for value in baseline], baseline)
    assert (gain.mean, gain.n, gain.std) == (pytest.approx(step), 4, 0.0)
    assert (gain.low, gain.high, gain.p, gain.shown) == (None, None, None, False)


def test_only_seeds_that_both_have_are_compared():
    gains = compare({0: 90.0, 1: 91.0, 2: 92.0}, {"a": {2: 93.0, 0: 92.0, 7: 10.0}, "b": {5: 99.0}, "c": {}})
    assert set(gains) == {"a"}
    assert (gains["a"].mean, gains["a"].n) == (1.5, 2)


def test_a_single_seed_borrows_the_spread_of_the_other_rows():
    baseline = dict(enumerate([90.0, 90.0, 90.0, 90.0, 90.0]))
    rows = {
        "one": {0: 91.0},
        "three": dict(enumerate([91.0, 92.0, 93.0])),
        "five": dict(enumerate([90.0, 91.0, 91.0, 91.0, 92.0])),
        "same": dict(enumerate([91.0, 91.0])),
    }
    gains = compare(baseline, rows)
    pooled = math.sqrt((2 * 1.0 + 4 * 0.5) / 6)
    assert pooled_std(gains.values()) == pytest.approx(pooled)
    assert gains["one"].seeds_needed == seeds_needed(1.0, pooled)
    assert gains["three"].seeds_needed == seeds_needed(2.0, 1.0)
    assert gains["same"].seeds_needed is None
    assert compare(baseline, {"one": {0: 91.0}})["one"].seeds_needed is None


def test_holms_correction_is_over_the_rows_that_are_tested():
    baseline = {0: 90.0, 1: 90.0, 2: 90.0}
    rows = {
        "clear": {0: 92.0, 1: 92.1, 2: 91.9},
        "single": {0: 99.0},
        "noise": {0: 91.0, 1: 89.0, 2: 90.5},
    }
    gains = compare(baseline, rows)
    assert gains["clear"].p_holm == 2 * gains["clear"].p
    assert gains["noise"].p_holm == gains["noise"].p
    assert [name for name, gain in gains.items() if gain.shown] == ["clear"]
