"""Generated images: real files of the promised classes, the same each time."""

import numpy as np
import pytest
from PIL import Image

from distillery.data.generated import generate_images
from distillery.data.prepare import prepare_dataset
from distillery.experiment.schema.dataset import Dataset, Generated


@pytest.mark.parametrize(("classes", "images"), [(1000, 16), (10, 16), (3, 7), (1, 2)])
def test_pairs_of_a_class_reach_over_all_classes(tmp_path, classes, images):
    found = generate_images(tmp_path / "raw", Generated(classes=classes, images=images, size=12))
    assert len(found.classes) == classes
    train = [image.label for image in found.splits["train"]]
    assert len(train) == images
    assert max(train) < classes <= max(train) + 1 + 2 * classes // max(1, images // 2)
    assert {image.label for image in found.splits["val"]} <= set(train)
    alone = [label for label in train if train.count(label) == 1]
    assert len(alone) <= images % 2


def test_a_data_set_with_more_classes_than_images_can_be_prepared(tmp_path):
    dataset = Dataset(path=str(tmp_path / "raw"), generated=Generated(classes=1000, images=16, size=24))
    manifest = prepare_dataset("many", dataset, tmp_path / "prepared", workers=1)
    assert len(manifest.classes) == 1000
    assert manifest.splits["train"].images == 16
    assert sum(map(bool, manifest.splits["train"].images_per_class)) == 8
    assert not manifest.duplicates.across_splits


def test_the_same_images_each_time_and_classes_differ_in_colour(tmp_path):
    settings = Generated(classes=4, images=8, size=32)
    first, second = (generate_images(tmp_path / name, settings) for name in ("first", "second"))
    colours = {}
    for one, other in zip(first.splits["train"], second.splits["train"], strict=True):
        pixels = [np.asarray(Image.open(image.file.location())) for image in (one, other)]
        assert pixels[0].shape == (32, 40, 3)
        assert (pixels[0] == pixels[1]).all()
        colours.setdefault(one.label, []).append(pixels[0].mean((0, 1)))
    centres = [np.mean(values, axis=0) for _, values in sorted(colours.items())]
    assert min(np.abs(a - b).max() for i, a in enumerate(centres) for b in centres[:i]) > 5
