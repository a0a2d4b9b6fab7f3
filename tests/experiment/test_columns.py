"""Every column that an experiment may ask for is known, and prints numbers as readers expect them."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.experiment.ledger import METRIC_KEYS
from distillery.experiment.schema.columns import COLUMNS, with_prefix
from distillery.experiment.schema.experiment import ColumnName


def test_a_table_may_have_every_column():
    assert get_args(ColumnName) == tuple(COLUMNS)


def test_columns_of_probes_make_no_metrics_stale():
    assert METRIC_KEYS == ["agreement", "ece", "nll", "top1", "top5"]


def test_complements_point_at_each_other_and_turn_the_direction():
    pairs = {name: column.complement for name, column in COLUMNS.items() if column.complement}
    assert pairs == {"top1": "error1", "error1": "top1", "top5": "error5", "error5": "top5"}
    for one, other in pairs.items():
        assert {COLUMNS[one].better, COLUMNS[other].better} == {"higher", "lower"}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("top1", 93.0, "93.00"),
        ("top1", 99.996, "100.00"),
        ("error1", 6.999, "7.00"),
        ("gain_over_published", 0.6, "0.60"),
        ("gain_over_published", -1.0, "-1.00"),
        ("gain_over_published", -0.001, "0.00"),
        ("nll", 0.30849, "0.308"),
        ("params", 272474, "272 k"),
        ("params", 25557032, "25.6 M"),
        ("macs", 4089184256, "4.09 G"),
        ("size", 1100000, "1.10 MB"),
        ("size", 512, "512 B"),
        ("latency", 1.254, "1.25"),
        ("throughput", 12345.6, "12,346"),
    ],
)
def test_a_value_is_printed(name, value, text):
    assert COLUMNS[name].show(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (999.6, "1.00 k"), (1000, "1.00 k"), (999_499, "999 k"), (999_500, "1.00 M")],
)
def test_a_prefix_steps_up_where_rounding_does(value, text):
    assert with_prefix(value) == text


@given(st.integers(1, 10**17))
def test_three_digits_tell_a_count_to_half_a_percent(count):
    number, _, prefix = with_prefix(count).partition(" ")
    assert abs(float(number) * 1000.0 ** " kMGTP".index(prefix or " ") / count - 1) <= 0.00501


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("top1", 0.5, "+0.50"),
        ("top1", -0.5, "-0.50"),
        ("top1", -0.001, "0.00"),
        ("top1", 0.0, "0.00"),
        ("params", -1500.0, "-1.50 k"),
        ("params", 0.0, "0"),
    ],
)
def test_a_difference_has_a_sign_unless_it_prints_as_zero(name, value, text):
    assert COLUMNS[name].show_difference(value) == text
