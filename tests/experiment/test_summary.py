"""Mean and sample standard deviation, the same bits in any order."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.experiment.schema.columns import Summary, summarize


def test_known_values():
    assert summarize([90.0, 91.0, 92.0]) == Summary(91.0, 1.0, 3)
    assert summarize([1.0, 3.0]) == Summary(2.0, math.sqrt(2), 2)
    assert summarize([97.25]) == Summary(97.25, None, 1)


def test_a_single_count_stays_a_whole_number():
    assert repr(summarize([77850]).mean) == "77850"


values = st.lists(st.floats(0, 100), min_size=2, max_size=8)


@given(values, st.randoms())
def test_the_order_of_seeds_changes_no_bit(numbers, random):
    shuffled = random.sample(numbers, len(numbers))
    assert summarize(shuffled) == summarize(numbers)


@given(values)
def test_it_agrees_with_numpy(numbers):
    summary = summarize(numbers)
    assert summary.mean == pytest.approx(np.mean(numbers))
    assert summary.std == pytest.approx(np.std(numbers, ddof=1), abs=1e-9)
