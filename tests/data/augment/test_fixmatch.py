"""FixMatch's augmentation: a function of its address, of strengths and covers within their bounds."""

import random

import pytest
import torch

from distillery.data.augment.fixmatch import COVER, OPERATIONS, FixMatchAugment


def made(augment, images, seed=0):
    random.seed(seed)
    return torch.stack([augment(image) for image in images])


def noise(count=40, height=16, width=16):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(0)).byte()


def test_the_same_address_gives_the_same_image_and_the_original_stays():
    images = noise()
    kept, augment = images.clone(), FixMatchAugment(2, 0.5)
    one, two, other = made(augment, images), made(augment, images), made(augment, images, 1)
    assert torch.equal(images, kept)
    assert one.dtype == torch.uint8
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_the_cover_is_a_square_of_at_most_half_the_side_anywhere():
    images = noise(400, 20, 20).clamp(max=99)  # without the cover's colour
    covered = (made(FixMatchAugment(0, 0.5), images) == torch.tensor(COVER)[:, None, None]).all(dim=1)
    heights, widths = covered.any(dim=2).sum(dim=1), covered.any(dim=1).sum(dim=1)
    assert (covered.sum(dim=(1, 2)) == heights * widths).all()
    assert heights.max() <= 12
    assert widths.max() >= 9
    assert covered.any(dim=0).all()


def test_without_operations_and_cover_nothing_happens():
    images = noise(width=24)
    assert torch.equal(made(FixMatchAugment(0, 0.0), images), images)


@pytest.mark.parametrize("place", range(len(OPERATIONS)))
def test_every_operation_takes_both_ends_of_its_range(place, monkeypatch):
    monkeypatch.setattr("distillery.data.augment.fixmatch.OPERATIONS", OPERATIONS[place : place + 1])
    images = noise(2, 12, 18)
    for end in (0.0, 1.0):
        monkeypatch.setattr(random, "random", lambda end=end: end)
        assert made(FixMatchAugment(1, 0.5), images).shape == images.shape
