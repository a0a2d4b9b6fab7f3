"""The rule of the verdict: known cases, and what must hold for all."""

from decimal import Decimal
from math import sqrt

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from distillery.experiment.schema.columns import COLUMNS, Summary, summarize
from distillery.reporting.published import Published
from distillery.reporting.verdict import judge, noise


def published(value, std=None, n=None, selection=None, metric="top1"):
    return Published(
        "small", metric, Decimal(str(value)), None if std is None else Decimal(str(std)), n, selection, "here", 2
    )


def find(summary, number, selection="last", images=10_000):
    return judge(COLUMNS[number.metric], summary, selection, images, number).finding


ORDER = ["not reproduced", "within noise", "reproduced"]


# --- known cases -----------------------------------------------------------------------------------------------------


def test_a_result_at_least_as_good_as_published_is_reproduced():
    assert find(Summary(76.1, 0.1, 3), published("76.10")) == "reproduced"
    assert find(Summary(90.0, 0.1, 3), published("76.10")) == "reproduced"


@pytest.mark.parametrize(("mean", "finding"), [(76.05, "reproduced"), (76.0499, "not reproduced")])
def test_the_printed_digits_leave_half_a_unit_open(mean, finding):
    assert find(Summary(mean, 0.0, 3), published("76.1")) == finding


@pytest.mark.parametrize("tenths", range(1, 1000, 7))
def test_that_half_unit_is_decimal_as_it_was_printed(tenths):
    """In binary, 0.95 + 0.05 falls short of 1.0."""
    assert find(Summary(round(tenths / 10 - 0.05, 2), 0.0, 3), published(f"{tenths / 10:.1f}")) == "reproduced"


def test_more_printed_digits_are_a_stricter_claim():
    assert find(Summary(76.06, 0.0, 3), published("76.1")) == "reproduced"
    assert find(Summary(76.06, 0.0, 3), published("76.10")) == "not reproduced"


@pytest.mark.parametrize(("metric", "value", "better"), [("error1", "23.90", 23.0), ("nll", "0.300", 0.2)])
def test_lower_is_better_for_errors(metric, value, better):
    assert find(Summary(better, 0.0, 3), published(value, metric=metric)) == "reproduced"
    assert find(Summary(2 * float(value), 0.0, 3), published(value, metric=metric)) == "not reproduced"


def test_two_known_spreads_are_compared_by_welch_s_test():
    ours, theirs = [75.9, 76.1, 75.8], [76.3, 76.5, 76.2, 76.6, 76.4]
    measured, other = summarize(ours), summarize(theirs)
    number = published(f"{other.mean:.15f}", f"{other.std:.15f}", other.n)
    tolerance = noise(COLUMNS["top1"], measured, 10_000, number)
    welch = stats.ttest_ind(ours, theirs, equal_var=False, alternative="less")
    limit = stats.ttest_ind(
        [value + (other.mean - tolerance) - measured.mean for value in ours],
        theirs,
        equal_var=False,
        alternative="less",
    )
    assert limit.pvalue == pytest.approx(0.05, abs=1e-6)
    assert welch.pvalue < 0.05
    assert find(measured, number) == "not reproduced"


def test_our_spread_stands_for_a_published_one_that_is_not_known():
    # Three runs against one: 2.9200 * 0.3 * sqrt(1/3 + 1) = 1.0115, on top of the rounding of 0.05.
    number = published("77.0")
    assert noise(COLUMNS["top1"], Summary(76.0, 0.3, 3), 10_000, number) == pytest.approx(1.01151, abs=1e-4)
    assert find(Summary(77.0 - 1.06, 0.3, 3), number) == "within noise"
    assert find(Summary(77.0 - 1.07, 0.3, 3), number) == "not reproduced"


def test_a_published_spread_stands_for_ours_after_a_single_run():
    # One run against five: 2.1318 * 0.18 * sqrt(1 + 1/5) = 0.42036.
    number = published("76.32", "0.18", 5)
    assert noise(COLUMNS["top1"], Summary(76.0, None, 1), 10_000, number) == pytest.approx(0.42036, abs=1e-4)


def test_without_any_spread_a_share_varies_as_independent_images_would():
    # 1.6449 * 100 sqrt(0.7 * 0.3 / 50 000) * sqrt(2) for the means of one run each.
    number = published("70.000")
    expected = 1.6448536 * 100 * sqrt(0.21 / 50_000) * sqrt(2)
    assert noise(COLUMNS["top1"], Summary(69.9, None, 1), 50_000, number) == pytest.approx(expected, rel=1e-6)
    assert find(Summary(69.9, None, 1), number, images=50_000) == "within noise"
    assert find(Summary(69.0, None, 1), number, images=50_000) == "not reproduced"


@pytest.mark.parametrize("metric", ["nll", "ece"])
def test_without_any_spread_other_measures_have_no_tolerance(metric):
    assert find(Summary(0.31, None, 1), published("0.30", metric=metric)) == "not reproduced"


def test_that_bound_is_generous():
    """Images of unequal difficulty, the same for every network, vary less than equal ones: Jensen's inequality."""
    import numpy as np

    generator = np.random.Generator(np.random.Philox(key=1))
    chance = generator.beta(0.4, 0.1, size=1000)
    scores = 100 * (generator.random((400, 1000)) < chance).mean(axis=1)
    p = scores.mean() / 100
    assert scores.std(ddof=1) < 100 * sqrt(p * (1 - p) / 1000)


@pytest.mark.parametrize(
    ("ours", "theirs", "finding"),
    [
        ("last", "best", "not comparable"),
        ("best", "last", "not comparable"),
        ("last", "last", "reproduced"),
        ("best", "best", "reproduced"),
        ("last", None, "reproduced"),
        ("holdout", "last", "reproduced"),
        ("holdout", "best", "not comparable"),
        ("holdout", None, "reproduced"),
        ("best", None, "reproduced"),
        ("imported", "best", "reproduced"),
        ("imported", "last", "reproduced"),
    ],
)
def test_unlike_selection_rules_are_not_compared(ours, theirs, finding):
    verdict = judge(COLUMNS["top1"], Summary(80.0, 0.1, 3), ours, 10_000, published("76.1", selection=theirs))
    assert verdict.finding == finding
    assert (verdict.difference is None) == (finding == "not comparable")


def test_what_was_not_run_is_not_judged():
    assert judge(COLUMNS["top1"], None, "", 0, published("76.1")).finding == "not run"


@pytest.mark.parametrize(
    ("count", "finding"), [(25_557_032, "reproduced"), (25_500_000, "not reproduced"), (26_000_000, "not reproduced")]
)
def test_what_the_architecture_decides_is_matched_not_beaten(count, finding):
    assert find(Summary(count, None, 1), published("25.6e6", metric="params"), selection="") == finding


# --- properties ------------------------------------------------------------------------------------------------------

share = st.floats(1, 99)
spread = st.floats(0.001, 5)
digits = st.integers(0, 3)
seeds = st.lists(share, min_size=1, max_size=6)


@st.composite
def numbers(draw, metric="top1"):
    n = draw(st.none() | st.integers(1, 10))
    std = draw(st.none() | st.floats(0.01, 3)) if n is not None and n > 1 else None
    return published(
        f"{draw(share):.{draw(digits)}f}",
        None if std is None else f"{std:.2f}",
        n,
        draw(st.sampled_from([None, "last", "best"])),
        metric,
    )


@given(seeds, numbers(), st.randoms())
def test_the_order_of_seeds_changes_nothing(values, number, random):
    shuffled = random.sample(values, len(values))
    one = judge(COLUMNS["top1"], summarize(values), "last", 360, number)
    assert judge(COLUMNS["top1"], summarize(shuffled), "last", 360, number) == one


@given(share, st.floats(0, 20), st.none() | spread, numbers())
def test_a_better_mean_never_has_a_worse_verdict(mean, gain, std, number):
    assume(number.selection != "best")
    n = 1 if std is None else 3
    worse, better = (find(Summary(value, std, n), number) for value in (mean, mean + gain))
    assert ORDER.index(better) >= ORDER.index(worse)


@given(share, st.none() | spread, numbers())
def test_an_error_is_judged_as_its_accuracy(mean, std, number):
    shortfall = abs(mean - float(number.value))
    measured = Summary(mean, std, 1 if std is None else 3)
    limits = [number.rounding, number.rounding + noise(COLUMNS["top1"], measured, 360, number)]
    assume(all(abs(shortfall - limit) > 1e-6 for limit in limits))
    turned = number.in_column("error1")
    assert find(Summary(100 - mean, std, measured.n), turned, images=360) == find(measured, number, images=360)


@given(share, spread, numbers(metric="nll"), st.integers(-3, 3))
def test_the_unit_of_measure_changes_nothing(mean, std, number, power):
    """Scaling our values, their values, spreads and last digits alike scales the tolerance, and leaves the verdict."""
    factor = Decimal(10) ** power
    scaled = published(
        number.value.scaleb(power),
        None if number.std is None else number.std.scaleb(power),
        number.n,
        number.selection,
        "nll",
    )
    measured = Summary(mean, std, 3)
    larger = Summary(mean * float(factor), std * float(factor), 3)
    one, other = noise(COLUMNS["nll"], measured, 360, number), noise(COLUMNS["nll"], larger, 360, scaled)
    assert other == pytest.approx(one * float(factor), rel=1e-9)
    shortfall = mean - float(number.value) - number.rounding
    assume(min(abs(shortfall), abs(shortfall - one)) > 1e-6)
    assert find(larger, scaled) == find(measured, number)


@given(spread, st.floats(1, 10), numbers())
def test_a_wider_spread_of_ours_never_narrows_the_tolerance_when_the_published_one_is_unknown(std, factor, number):
    assume(number.std is None)
    narrow, wide = (noise(COLUMNS["top1"], Summary(50, value, 3), 360, number) for value in (std, std * factor))
    assert wide >= narrow


@given(spread, st.integers(2, 20), numbers())
def test_more_seeds_never_widen_the_tolerance_when_the_published_spread_is_unknown(std, n, number):
    assume(number.std is None)
    few, many = (noise(COLUMNS["top1"], Summary(50, std, count), 360, number) for count in (n, n + 1))
    assert many <= few
