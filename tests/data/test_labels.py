"""Which images are labelled: as many as asked for, of every class, the same for every run of a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.data.labels import choose_labelled

LABELS = st.lists(st.integers(0, 6), min_size=1, max_size=80).map(np.array)


@given(LABELS, st.integers(0, 9), st.data())
def test_labels_are_shared_out_by_the_sizes_of_the_classes(labels, seed, data):
    count = data.draw(st.integers(1, len(labels)))
    chosen = choose_labelled(labels, count, seed)
    assert len(set(chosen)) == len(chosen) == count
    assert (np.sort(chosen) == chosen).all()
    sizes = np.bincount(labels)
    found = np.bincount(labels[chosen], minlength=len(sizes))
    present = sizes > 0
    if count >= present.sum():
        assert (found[present] >= 1).all()
    if (exact := count * sizes / sizes.sum())[present].min() >= 1:
        assert (abs(found - exact) < 1).all()


def test_seeds_choose_differently_and_repeat():
    labels = np.repeat(np.arange(10), 20)
    assert (choose_labelled(labels, 50, 3) == choose_labelled(labels, 50, 3)).all()
    assert (choose_labelled(labels, 50, 3) != choose_labelled(labels, 50, 4)).any()


@pytest.mark.slow
def test_every_image_of_a_class_is_chosen_as_often():
    labels = np.array([0] * 5 + [1] * 15)
    counts = sum(np.bincount(choose_labelled(labels, 4, seed), minlength=20) for seed in range(4000))
    assert abs(counts / 800 - 1).max() < 0.15
