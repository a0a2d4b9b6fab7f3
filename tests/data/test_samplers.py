"""Every global batch is the same for any number of processes and micro-batches."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distillery.data.orders import partner_order, repeated_order, shuffled_order
from distillery.data.samplers import GlobalBatches, Sample, copy_numbers
from distillery.errors import UserError


def collect(images, batch, world_size, accumulation, drop_last, epoch=0, step=0, order=None, paired=False):
    """By step, micro-batch and rank: the samples."""
    ranks = []
    for rank in range(world_size):
        batches = GlobalBatches(
            order or shuffled_order(images, 5),
            images,
            batch,
            world_size=world_size,
            rank=rank,
            accumulation=accumulation,
            drop_last=drop_last,
            paired=paired,
        )
        batches.start(epoch, step)
        lists = list(batches)
        assert len(lists) == len(batches) == (batches.steps - step) * accumulation
        ranks.append([lists[begin : begin + accumulation] for begin in range(0, len(lists), accumulation)])
    return [
        [[rank[number][micro] for rank in ranks] for micro in range(accumulation)] for number in range(len(ranks[0]))
    ]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_ranks_and_micro_batches_partition_the_global_batch(images, batch, world_size, accumulation, drop_last, epoch):
    last = images % batch or batch
    assume(batch >= world_size * accumulation and (drop_last or last >= world_size * accumulation))
    order = shuffled_order(images, 5)(epoch)
    steps = collect(images, batch, world_size, accumulation, drop_last, epoch)
    largest = GlobalBatches(
        shuffled_order(images, 5), images, batch, world_size=world_size, accumulation=accumulation, drop_last=drop_last
    ).largest
    assert len(steps) == (images // batch if drop_last else -(-images // batch))
    for number, step in enumerate(steps):
        flat = [sample for micro in step for part in micro for sample in part]
        assert [sample.index for sample in flat] == order[number * batch : (number + 1) * batch].tolist()
        assert {sample.epoch for sample in flat} == {epoch}
        assert {sample.copy for sample in flat} == {0}
        sizes = [len(part) for micro in step for part in micro]
        assert 1 <= min(sizes) <= max(sizes) <= largest
        if len(flat) % (world_size * accumulation) == 0:
            assert set(sizes) == {len(flat) // (world_size * accumulation)}
        for micro in step:
            assert max(map(len, micro)) - min(map(len, micro)) <= 1


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 5), st.integers(1, 4))
def test_images_that_are_mixed_stay_together_and_meet_as_in_the_whole_batch(images, pairs, world_size, accumulation):
    batch = 2 * pairs
    assume(pairs >= world_size * accumulation)
    order = shuffled_order(images, 5)
    options = {"world_size": world_size, "accumulation": accumulation, "paired": True}
    made = GlobalBatches(order, images, batch, **options)
    for number, step in enumerate(collect(images, batch, world_size, accumulation, True, order=order, paired=True)):
        whole = order(0)[number * batch : (number + 1) * batch].tolist()
        met = dict(zip(whole, reversed(whole), strict=True))
        lists = [[sample.index for sample in part] for micro in step for part in micro]
        assert sorted(index for part in lists for index in part) == sorted(whole)
        assert all(met[first] == last for part in lists for first, last in zip(part, reversed(part), strict=True))
        assert made.smallest == min(map(len, lists)) <= max(map(len, lists)) == made.largest
    # One process in one piece has the batch in its own order, as without pairs.
    assert collect(images, batch, 1, 1, True, order=order, paired=True) == collect(
        images, batch, 1, 1, True, order=order
    )


def test_too_few_pairs_to_mix_are_refused():
    with pytest.raises(UserError, match=r"batch: 3 pairs of images to mix cannot be split over 2 .*; use at least 8"):
        GlobalBatches(shuffled_order(17, 0), 17, 6, world_size=2, accumulation=2, paired=True)


@given(st.integers(1, 100), st.integers(1, 30), st.integers(0, 100))
def test_a_start_in_the_middle_gives_the_tail_of_the_epoch(images, batch, step):
    whole = collect(images, batch, 1, 1, False, epoch=2)
    step = min(step, len(whole))
    assert collect(images, batch, 1, 1, False, epoch=2, step=step) == whole[step:]


@given(st.integers(1, 100), st.integers(1, 30), st.booleans())
def test_step_images_is_the_size_of_the_global_batch(images, batch, drop_last):
    batches = GlobalBatches(shuffled_order(images, 0), images, batch, drop_last=drop_last)
    assert [batches.step_images(step) for step in range(batches.steps)] == [len(samples) for samples in batches]


@given(st.lists(st.integers(0, 5), max_size=50))
def test_copies_are_counted(ids):
    seen: dict[int, int] = {}
    expected = []
    for index in ids:
        expected.append(seen.get(index, 0))
        seen[index] = seen.get(index, 0) + 1
    assert copy_numbers(np.array(ids, dtype=np.int64)).tolist() == expected


def test_repeated_ids_are_separate_samples():
    batches = GlobalBatches(repeated_order(20, 0, 3), 20, 4)
    samples = [sample for samples in batches for sample in samples]
    assert len(set(samples)) == 20
    assert max(sample.copy for sample in samples) == 2
    labels = np.arange(12) % 3
    anchors = GlobalBatches(partner_order(labels, 0, 1), 24, 8)
    assert len({sample for samples in anchors for sample in samples}) == 24


def test_iterating_twice_gives_the_same_until_started_elsewhere():
    batches = GlobalBatches(shuffled_order(10, 0), 10, 3, drop_last=False)
    first = list(batches)
    assert list(batches) == first
    batches.start(1)
    assert list(batches) != first
    assert isinstance(first[0][0], Sample)


def test_a_last_batch_too_small_for_its_parts_is_refused():
    order = shuffled_order(17, 0)
    with pytest.raises(
        UserError, match=r"make a batch of 1, too few for 2 processes x 2 micro-batches; set `drop_last: true"
    ):
        GlobalBatches(order, 17, 8, world_size=2, accumulation=2, drop_last=False)
    assert GlobalBatches(order, 17, 8, world_size=2, accumulation=2, drop_last=True).steps == 2
    assert GlobalBatches(order, 17, 8, drop_last=False).steps == 3


def test_a_batch_too_small_for_its_parts_is_refused():
    with pytest.raises(
        UserError, match="batch: 3 images cannot be split over 2 processes x 2 micro-batches; use at least 4"
    ):
        GlobalBatches(shuffled_order(17, 0), 17, 3, world_size=2, accumulation=2)


def test_with_crops_every_use_of_an_image_is_one_of_so_many_views():
    batches = GlobalBatches(lambda epoch: np.array([3, 1, 3, 3]), 4, 2, crops=2)
    batches.start(1)
    assert [sample for part in batches for sample in part] == [(1, 3, 0), (1, 1, 0), (0, 3, 0), (1, 3, 0)]


def test_with_crops_batches_hold_the_images_that_they_hold_without():
    parts = [GlobalBatches(shuffled_order(12, 0), 12, 4, crops=crops) for crops in (None, 3)]
    for batches in parts:
        batches.start(5)
    plain, few = ([[sample.index for sample in part] for part in batches] for batches in parts)
    assert plain == few
