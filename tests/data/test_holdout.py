"""Held-out images: a share of every class, taken from training and from nothing else."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import write_images

from distillery.data.holdout import hold_out
from distillery.data.manifest import Ignored
from distillery.data.prepare import prepare_dataset
from distillery.data.raw import RawFile
from distillery.data.sources import RawImage, RawImages
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset


def raw(*sizes, val=3):
    def split(name, counts):
        return [
            RawImage(RawFile(f"{name}/{label}/{number}.png", 1, Path("raw")), f"{name}/{label}/{number}.png", label)
            for label, count in enumerate(counts)
            for number in range(count)
        ]

    classes = tuple(f"class{label}" for label in range(len(sizes)))
    splits = {"train": split("train", sizes), "val": split("val", [val] * len(sizes))}
    return RawImages(classes, {"train": "train", "val": "val"}, splits, Ignored(hidden=0, extensions={}))


@given(st.lists(st.integers(2, 60), min_size=1, max_size=6), st.floats(0.001, 0.99))
def test_a_share_of_every_class_moves_and_nothing_is_lost(sizes, share):
    before = raw(*sizes)
    after = hold_out(before, share, "some")
    train, held = after.splits["train"], after.splits["holdout"]
    assert sorted(image.path for image in [*train, *held]) == sorted(image.path for image in before.splits["train"])
    assert after.splits["val"] == before.splits["val"]
    counts = Counter(image.label for image in held)
    for label, size in enumerate(sizes):
        assert 1 <= counts[label] <= size - 1
        assert abs(counts[label] - share * size) <= 1
    assert [image.label for image in held] == sorted(image.label for image in held)
    assert hold_out(raw(*sizes), share, "other").splits == after.splits


def test_a_class_with_one_image_is_refused():
    with pytest.raises(UserError, match=r"class 'class1' has one training image, too few for `holdout` of 'some'"):
        hold_out(raw(5, 1), 0.1, "some")


def test_what_is_held_out_does_not_count_as_training(tmp_path):
    write_images(tmp_path / "raw", train=10)
    plain = prepare_dataset("plain", Dataset(path=str(tmp_path / "raw")), tmp_path / "plain", 1)
    held = prepare_dataset("held", Dataset(path=str(tmp_path / "raw"), holdout=0.2), tmp_path / "held", 1)
    assert {name: split.images for name, split in held.splits.items()} == {"train": 24, "holdout": 6, "val": 12}
    assert held.splits["val"].content == plain.splits["val"].content
    assert held.statistics != plain.statistics
    assert held.digest != plain.digest
    assert (plain.selection_split, held.selection_split) == ("val", "holdout")
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "held").glob("*.arrow")) == [
        "holdout",
        "train",
        "val",
    ]


def test_a_copy_of_a_validation_image_is_noticed_among_those_held_out(tmp_path):
    write_images(tmp_path / "raw", train=10)
    for label in ("ape", "bee", "cow"):
        for image in (tmp_path / "raw" / "train" / label).iterdir():
            image.write_bytes((tmp_path / "raw" / "val" / label / "000.png").read_bytes())
    held = prepare_dataset("held", Dataset(path=str(tmp_path / "raw"), holdout=0.2), tmp_path / "held", 1)
    assert len(held.duplicates.across_splits) == 3
