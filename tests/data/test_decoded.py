"""Decoded images on disk: the same batches, and nothing that stays."""

import shutil
from collections import namedtuple

import pytest
import torch

from distillery.data import decoded
from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.data.decoded import DecodedImages
from distillery.data.loader import train_loader
from distillery.data.orders import shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import train_transform
from distillery.errors import UserError
from distillery.experiment.schema.augmentation import HorizontalFlip, RandomCrop
from distillery.experiment.schema.recipe import Preprocess

AUGMENT = (RandomCrop(name="random_crop", padding=2), HorizontalFlip(name="horizontal_flip"))


@pytest.fixture
def images(place):
    return ArrowImages(place.output, place.fill(train=11, val=5).prepare(), "train")


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def epochs(images, workers, cache):
    batches = GlobalBatches(shuffled_order(len(images), 0), len(images), 4, drop_last=False)
    loader = train_loader(images, train_transform(Preprocess(size=6), AUGMENT), batches, 0, workers, False, cache=cache)
    for number in range(3):
        batches.start(number, 0)
        yield from (batch.images for batch in loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_with_a_cache_and_nothing_of_it_stays(images, cache, workers):
    plain = list(epochs(images, 0, None))
    kept = list(epochs(images, workers, cache))
    assert all(map(torch.equal, plain, kept))
    assert len(plain) == len(kept) > 6
    assert list(cache.iterdir()) == []


def test_an_image_is_decoded_once(images, cache, monkeypatch):
    asked = []

    def decode(encoded):
        asked.append(encoded)
        return decode_rgb(encoded)

    monkeypatch.setattr(decoded, "decode_rgb", decode)
    made = DecodedImages(images, cache)
    for index in [*range(len(images))] * 2:
        assert torch.equal(made.take(index), decode_rgb(images.encoded(index)))
    assert len(asked) == len(images)


def test_images_without_room_are_decoded_as_ever(images, cache, monkeypatch):
    largest = 3 * max(decode_rgb(images.encoded(index))[0].numel() for index in range(len(images)))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, int(2.5 * largest)))
    made = DecodedImages(images, cache)
    for index in [*range(len(images))] * 2:
        assert torch.equal(made.take(index), decode_rgb(images.encoded(index)))
    assert 1 <= int((made._rows_N3[:, 0] > 0).sum()) < len(images)


def test_a_disk_that_fills_up_under_it_costs_nothing_but_time(images, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(decoded.os, "pwrite", full)
    made = DecodedImages(images, cache)
    assert torch.equal(made.take(0), decode_rgb(images.encoded(0)))
    assert torch.equal(made.take(0), decode_rgb(images.encoded(0)))


def test_a_folder_that_is_missing_is_one_line(images, tmp_path):
    with pytest.raises(UserError, match=r"^--cache: .*nowhere: cannot be written: No such file or directory"):
        DecodedImages(images, tmp_path / "nowhere")
