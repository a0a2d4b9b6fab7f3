"""Images in memory are those of the workers, to the byte and by address, decoded once."""

import numpy as np
import pytest
import torch

from distillery.data import memory, shards
from distillery.data.arrow import ArrowImages
from distillery.data.loader import SecondView, eval_loader, eval_parts, train_loader
from distillery.data.memory import MemoryEvaluation, MemoryTraining, fits, squares_of
from distillery.data.orders import ClassPartners, partner_order, repeated_order, shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import eval_transform, train_transform
from distillery.experiment.schema.augmentation import (
    ColorJitter,
    HorizontalFlip,
    Lighting,
    RandomCrop,
    RandomResizedCrop,
)
from distillery.experiment.schema.recipe import Preprocess

CPU = torch.device("cpu")
SIZE = Preprocess(size=6)
CROP, FLIP = RandomCrop(name="random_crop", padding=2), HorizontalFlip(name="horizontal_flip")
REFLECT = RandomCrop(name="random_crop", padding=5, mode="reflect")


@pytest.fixture
def images(place, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 8)
    monkeypatch.setattr(memory, "_DRAWN_TOGETHER", 9)
    manifest = place.fill(train=11, val=5).prepare()
    return ArrowImages(place.output, manifest, "train")


def pair(
    images, augment, *, seed=3, viewer=None, view_augment=None, partner=None, order=None, preprocess=SIZE, **options
):
    """The workers' loader and that of memory, each with its batches."""
    made = []
    transform = train_transform(preprocess, augment)
    teacher = None if viewer is None else train_transform(preprocess, augment, viewer=viewer)
    again = (train_transform(preprocess, view_augment or augment, viewer=seen) for seen in (None, viewer))
    second, own_second = again
    view = SecondView(second, own_second if viewer else None, partner)
    view = view if view_augment or partner else None
    for kind in ("workers", "memory"):
        order_of = order or shuffled_order(len(images), seed)
        batches = GlobalBatches(order_of, len(order_of(0)), 4, **({"drop_last": False} | options))
        if kind == "workers":
            loader = train_loader(images, transform, batches, seed, 0, False, view, teacher)
        else:
            own = None if teacher is None else (teacher, squares_of(images, viewer, CPU))
            squares = squares_of(images, preprocess, CPU)
            loader = MemoryTraining(images, transform, batches, seed, squares, view, own)
        made.append((loader, batches))
    return made


def epochs(made, numbers=(0, 1, 0), step=0):
    found = []
    for number in numbers:
        made[1].start(number, step)
        assert len(made[0]) == len(made[1])
        found += list(made[0])
    return found


def same(expected, found):
    assert len(expected) == len(found) > 0
    for one, other in zip(expected, found, strict=True):
        for name, left, right in zip(one._fields, one, other, strict=True):
            assert (left is None) == (right is None), name
            assert left is None or (left.dtype == right.dtype and torch.equal(left, right)), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment",
    [
        (),
        (CROP,),
        (CROP, FLIP),
        (FLIP, CROP, FLIP),
        (REFLECT, HorizontalFlip(name="horizontal_flip", p=0.2)),
        (RandomCrop(name="random_crop", padding=0), HorizontalFlip(name="horizontal_flip", p=1)),
    ],
    ids=lambda augment: "-".join(operation.name for operation in augment) or "plain",
)
@pytest.mark.parametrize(
    "preprocess", [SIZE, Preprocess(size=5, resize=7), Preprocess(size=9, rule="bake")], ids=["6", "5 of 7", "bake"]
)
def test_every_image_is_that_of_the_workers(images, augment, preprocess):
    workers, kept = pair(images, augment, preprocess=preprocess)
    same(epochs(workers), epochs(kept))


@pytest.mark.slow
def test_a_second_view_and_a_teachers_squares_are_those_of_the_workers(images):
    for viewer in (None, Preprocess(size=15), Preprocess(size=4, resize=8)):
        for again in (None, (REFLECT, FLIP), (FLIP,), (CROP, FLIP, CROP)):
            workers, kept = pair(images, (REFLECT, FLIP), viewer=viewer, view_augment=again)
            same(epochs(workers), epochs(kept))


def test_another_image_of_the_class_as_second_view_is_that_of_the_workers(images):
    workers, kept = pair(images, (CROP, FLIP), partner=ClassPartners(images.labels, 5))
    same(epochs(workers), epochs(kept))


@pytest.mark.parametrize("kind", ["repeated", "partners"])
def test_copies_and_partners_are_those_of_the_workers(images, kind):
    order = repeated_order(len(images), 0, 11) if kind == "repeated" else partner_order(images.labels, 0, 1)
    workers, kept = pair(images, (CROP, FLIP), order=order)
    same(epochs(workers), epochs(kept))


def test_ranks_micro_batches_and_a_start_at_a_step_are_those_of_the_workers(images):
    for rank in range(2):
        options = {"world_size": 2, "rank": rank, "accumulation": 2, "drop_last": True}
        workers, kept = pair(images, (CROP, FLIP), **options)
        same(epochs(workers, step=3), epochs(kept, step=3))


def test_hidden_labels_stay_hidden(images):
    few = images.with_labels_of(np.array([1, 4, 20]))
    workers, kept = pair(few, (CROP,))
    same(epochs(workers), epochs(kept))


def test_equal_squares_are_kept_once(images):
    kept = squares_of(images, SIZE, CPU)
    assert squares_of(images, Preprocess(size=6, normalize="imagenet"), CPU) is kept
    assert squares_of(images, Preprocess(size=6, resize=8), CPU) is not kept


@pytest.mark.parametrize("world_size", [1, 3, 30])
def test_evaluation_is_that_of_the_workers(images, world_size):
    for indices in (None, np.array([7, 2, 9, 0, 21, 4, 5])):
        workers, kept = [], []
        for rank in range(world_size):
            workers += eval_loader(images, eval_transform(SIZE), 4, 0, world_size, rank, False, indices)
            parts = eval_parts(len(images), 4, world_size, rank, indices)
            kept += MemoryEvaluation(images, squares_of(images, SIZE, CPU), parts)
        same(workers, kept)


def test_an_image_is_decoded_once_and_only_if_it_is_asked_for(images, monkeypatch):
    asked = []
    original = ArrowImages.encoded
    monkeypatch.setattr(ArrowImages, "encoded", lambda self, index: asked.append(index) or original(self, index))
    squares = squares_of(images, SIZE, CPU)
    squares.take(np.array([3, 3, 8]))
    squares.take(np.array([8, 1]))
    assert asked == [3, 8, 1]


def test_what_is_done_to_a_batch_is_not_done_to_the_squares(images):
    squares, ids = squares_of(images, SIZE, CPU), np.arange(5)
    squares.take(ids).fill_(0)
    assert squares.take(ids).any()


def test_only_what_a_whole_batch_can_be_done_to_is_done_so():
    others = (
        RandomResizedCrop(name="random_resized_crop"),
        ColorJitter(name="color_jitter", brightness=0.5),
        Lighting(name="lighting"),
    )
    assert train_transform(SIZE, (CROP, FLIP)).batched is not None
    assert [train_transform(SIZE, (other,)).batched for other in others] == [None] * 3


def test_what_is_too_large_for_memory_does_not_fit(images, monkeypatch):
    assert fits(images, SIZE, CPU)
    monkeypatch.setattr(memory, "MOST_BYTES", len(images) * 3 * 36 - 1)
    assert not fits(images, SIZE, CPU)
