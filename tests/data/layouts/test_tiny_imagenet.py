"""Tiny-ImageNet from its zip, unpacked, or as class folders."""

import re

import pytest

from distillery.errors import UserError


def test_archive_and_folders_give_the_same_images(tiny_imagenet, prepare_as):
    manifest, expected = prepare_as(tiny_imagenet.archive(), "tiny-imagenet", images={"train": 12, "val": 6})
    assert manifest.classes == ("n01440764", "n01530575", "n02119789")
    assert manifest.splits["val"].images_per_class == (2, 2, 2)
    assert manifest.ignored.extensions == {".txt": 3}
    assert prepare_as(tiny_imagenet.unpacked(), "tiny-imagenet")[1] == expected
    folders = tiny_imagenet.folders()
    assert prepare_as(folders, "tiny-imagenet")[1] == expected
    # Scripts that sort the validation images leave the list.
    (folders / "val" / "val_annotations.txt").write_text(tiny_imagenet.annotations)
    assert prepare_as(folders, "tiny-imagenet")[0].digest == manifest.digest


FAULTS = {
    "unknown class": (("val_1.JPEG\tn01440764", "val_1.JPEG\tn09999999"), "line 2: 'val_1.JPEG"),
    "no such image": (("val_1.JPEG", "val_77.JPEG"), "line 2: 'val_77.JPEG"),
    "twice": (("val_1.JPEG", "val_0.JPEG"), "expected an image of val/images/, once, and its wnid"),
    "no label": (("val_5.JPEG\tn01530575\t0\t32\t44\t62\n", ""), "val/images/val_5.JPEG has no label in val/val_ann"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_annotations_that_contradict_the_images_are_refused(tiny_imagenet, prepare_as, fault):
    (old, new), message = FAULTS[fault]
    assert old in tiny_imagenet.annotations
    tiny_imagenet.annotations = tiny_imagenet.annotations.replace(old, new)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        prepare_as(tiny_imagenet.archive(), "tiny-imagenet")
    assert "\n" not in str(caught.value)
