"""Images are read by id, without copies, in any process."""

import multiprocessing
import pickle

import pytest

from distillery.data import shards
from distillery.data.arrow import ArrowImages


@pytest.fixture
def images(place, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 3)
    manifest = place.fill(train=5).prepare()
    return ArrowImages(place.output, manifest, "train")


def files(place):
    return [path.read_bytes() for path in sorted((place.raw / "train").rglob("*.png"))]


def first_bytes(images):
    return [bytes(images.encoded(index)) for index in range(len(images))]


def test_a_pickled_copy_is_small_and_reads_the_same(images, place):
    assert first_bytes(images) == files(place)
    packed = pickle.dumps(images)
    assert len(packed) < 5000
    assert first_bytes(pickle.loads(packed)) == files(place)


def test_a_forked_process_reads_what_its_parent_had_open(images, place):
    images.encoded(0)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(first_bytes, (images,)) == files(place)
        pool.close()
        pool.join()


def test_bytes_are_views_of_the_mapped_file(images):
    view = images.encoded(4)
    assert isinstance(view, memoryview)
    assert view.readonly


@pytest.mark.parametrize("index", [-1, 10, 100])
def test_ids_outside_are_errors(images, index):
    with pytest.raises(IndexError, match=f"sample id {index} is not in"):
        images.encoded(index)
