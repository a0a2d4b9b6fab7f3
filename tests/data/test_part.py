"""A part of a data set: its first classes, and of each the first training images."""

import pytest
from tests.conftest import write_images

from distillery.data.prepare import prepare_dataset
from distillery.errors import UserError
from distillery.experiment.ledger import images_entry
from distillery.experiment.loading import load_dataset


def read(folder, keys):
    (folder / "datasets.yaml").write_text(f"some: {{path: {folder}/raw{keys}}}\n")
    return load_dataset(folder / "datasets.yaml", "some")


def paths(folder, keys):
    from distillery.data.arrow import ArrowImages

    manifest = prepare_dataset("some", read(folder, keys), folder / "made", workers=1)
    return manifest, {split: ArrowImages(folder / "made", manifest, split).labels.tolist() for split in manifest.splits}


@pytest.fixture
def raw(tmp_path):
    write_images(tmp_path / "raw")
    return tmp_path


def test_the_first_classes_and_their_first_images_are_kept_with_all_their_validation_images(raw):
    keys = ", part: {classes: 2, images: 5}, classes: 2, images: {train: 10, val: 8}"
    manifest, labels = paths(raw, keys)
    assert manifest.classes == ("ape", "bee")
    assert labels == {"train": [0] * 5 + [1] * 5, "val": [0] * 4 + [1] * 4}
    for path in [*(raw / "raw/train").glob("*/*.png"), *(raw / "raw").glob("*/cow/*.png")]:
        if path.exists() and (path.parent.name == "cow" or int(path.stem) >= 5):
            path.unlink()
    for folder in (raw / "raw").glob("*/cow"):
        folder.rmdir()
    assert paths(raw, "")[0].digest == manifest.digest


def test_of_a_part_some_may_be_held_out(raw):
    _, labels = paths(raw, ", part: {classes: 3, images: 4}, holdout: 0.25")
    assert labels == {"train": [0] * 3 + [1] * 3 + [2] * 3, "holdout": [0, 1, 2], "val": [0] * 4 + [1] * 4 + [2] * 4}


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("{classes: 4, images: 5}", r"raw: 3 classes, but part\.classes in datasets\.yaml takes 4"),
        ("{classes: 3, images: 13}", r"raw: train/ape/ has 12 images, but part\.images in datasets\.yaml takes 13"),
        ("{classes: 1, images: 5}", r"part\.classes: 1 is not valid"),
        ("{classes: 2}", r"part\.images: missing"),
    ],
)
def test_a_part_that_is_not_there_is_refused(raw, part, line):
    with pytest.raises(UserError, match=line):
        paths(raw, f", part: {part}")


def test_a_part_decides_the_images_and_a_whole_has_no_other_digest_than_before(raw):
    whole, part = (read(raw, keys) for keys in ("", ", part: {classes: 2, images: 5}"))
    assert images_entry(part) == images_entry(whole) | {"part": {"classes": 2, "images": 5}}
