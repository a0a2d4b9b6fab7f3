"""Orders hold what they promise, for any labels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.data.orders import (
    ClassPartners,
    cycled_order,
    flow_sample,
    labelled_part,
    mixed_order,
    partner_order,
    repeated_order,
    shuffled_order,
)
from distillery.errors import UserError

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)


@pytest.mark.slow
@given(LABELS, st.integers(0, 99), st.integers(1, 4), st.integers(0, 5))
def test_every_image_is_an_anchor_once_and_partners_are_of_its_class(labels, seed, partners, epoch):
    order = partner_order(labels, seed, partners)(epoch)
    groups = order.reshape(-1, partners + 1)
    assert sorted(groups[:, 0]) == list(range(len(labels)))
    for anchor, *chosen in groups:
        others = set(np.flatnonzero(labels == labels[anchor])) - {anchor}
        assert set(chosen) <= (others or {anchor})
        if len(others) >= partners:
            assert len(set(chosen)) == partners


@pytest.mark.slow
@pytest.mark.parametrize("partners", [1, 2, 3])
def test_partners_are_uniform_over_the_others(partners):
    labels = np.array([0] * 5 + [1] * 3)
    order = partner_order(labels, 0, partners)
    counts = np.zeros((8, 8))
    for epoch in range(3000):
        for anchor, *chosen in order(epoch).reshape(-1, partners + 1):
            counts[anchor, chosen] += 1
    expected = 3000 * partners / 4
    assert abs(counts[:5, :5][~np.eye(5, dtype=bool)] / expected - 1).max() < 0.15
    assert not counts[:5, 5:].any()
    assert not counts.diagonal().any()


def test_an_image_alone_in_its_class_is_its_own_partner():
    order = partner_order(np.array([0, 1, 1]), 0, 2)(0).reshape(-1, 3)
    assert order[order[:, 0] == 0].tolist() == [[0, 0, 0]]


def test_epochs_differ_and_repeat():
    order = partner_order(np.arange(40) % 4, 0, 1)
    assert (order(3) == order(3)).all()
    assert (order(3) != order(4)).any()


def test_class_partners_are_uniform_over_the_class_the_image_included_and_differ_by_address():
    labels = np.array([0, 1, 0, -1, 0, 1, 0, -1])
    partner = ClassPartners(labels, 3)
    drawn = np.array([[partner(epoch, index, 0) for index in range(8)] for epoch in range(2000)])
    assert (labels[drawn] == labels).all()
    counts = np.bincount(drawn[:, 0], minlength=8)[[0, 2, 4, 6]]
    assert ((counts - 500) ** 2 / 500).sum() < 21  # 3 degrees of freedom: one in 10,000
    assert ClassPartners(labels, 3)(7, 0, 0) == drawn[7, 0]
    assert len({partner(0, 0, copy) for copy in range(50)}) == 4


def test_no_partners_is_refused():
    with pytest.raises(UserError, match="partners: 0 is not valid"):
        partner_order(np.array([0, 0]), 0, 0)


@given(st.integers(1, 2000), st.integers(1, 4), st.integers(0, 9))
def test_repeated_augmentation_is_as_long_as_a_plain_epoch_and_repeats_in_a_row(images, repeats, seed):
    order = repeated_order(images, seed, repeats)(0)
    assert len(order) == (images // 256 * 256 or images)
    whole = order[: len(order) // repeats * repeats].reshape(-1, repeats)
    assert (whole == whole[:, :1]).all()
    assert len(set(whole[:, 0])) == len(whole)


@given(st.integers(1, 500), st.integers(0, 9))
def test_a_plain_epoch_shows_every_image_once(images, seed):
    assert sorted(shuffled_order(images, seed)(2)) == list(range(images))


def test_the_flow_sample_is_bounded_and_moves_with_the_epoch():
    assert len(flow_sample(100, 0, 0, 20)) == 20
    assert sorted(flow_sample(10, 0, 0, 20)) == list(range(10))
    assert set(flow_sample(100, 0, 0, 20)) != set(flow_sample(100, 0, 1, 20))


@given(st.integers(1, 30), st.integers(1, 100), st.integers(0, 5))
def test_a_cycled_order_shows_every_image_as_often_but_for_one_time(images, length, epoch):
    order = cycled_order(shuffled_order(images, 0), length)(epoch)
    assert len(order) == length
    counts = np.bincount(order, minlength=images)
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 20), st.integers(1, 90), st.integers(1, 32), st.floats(0.01, 0.99), st.integers(0, 3))
def test_every_batch_mixes_images_with_and_without_labels_by_its_share(labelled, others, batch, share, epoch):
    known, unknown = np.arange(labelled) * 3, np.arange(others) * 3 + 1
    order = mixed_order(known, unknown, 0, batch, share)(epoch)
    assert len(order) == labelled + others
    for begin in range(0, len(order), batch):
        part = order[begin : begin + batch]
        assert (part % 3 == 0).sum() == labelled_part(len(part), share) >= 1
        halves = (part[: len(part) // 2] % 3 == 0).sum(), (part[len(part) // 2 :] % 3 == 0).sum()
        assert abs(halves[0] - halves[1]) <= 1 + len(part) % 2
    for ids in (known, unknown):
        counts = np.bincount(order[np.isin(order, ids)], minlength=300)[ids]
        assert counts.max() - counts.min() <= 1


def test_epochs_mix_differently_and_repeat():
    order = mixed_order(np.arange(9), np.arange(9, 50), 0, 10, 0.3)
    assert (order(1) == order(1)).all()
    assert (order(1) != order(2)).any()
