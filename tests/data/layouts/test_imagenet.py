"""ImageNet is the same data set from its tars and from every way in which people have unpacked it."""

import re

import pytest

from distillery.errors import UserError


def test_tars_and_folders_give_equal_shards(imagenet, prepare_as):
    manifest, expected = prepare_as(imagenet.tars(), "imagenet", classes=3, images={"train": 15, "val": 6})
    assert manifest.classes == ("n01440764", "n01530575", "n02119789")
    assert manifest.splits["train"].images_per_class == (5, 5, 5)
    assert manifest.splits["train"].modes == {"CMYK": 1, "L": 1, "RGB": 13}
    assert manifest.splits["train"].formats == {"JPEG": 14, "PNG": 1}
    assert prepare_as(imagenet.folders(), "imagenet")[1] == expected
    assert prepare_as(imagenet.class_tars_and_flat_images(), "imagenet")[1] == expected
    assert prepare_as(imagenet.later_archive(), "imagenet")[1] == expected


def test_other_names_of_folders_change_paths_but_not_images(imagenet, prepare_as):
    expected, _ = prepare_as(imagenet.tars(), "imagenet")
    assert prepare_as(imagenet.folders(val="valid"), "imagenet")[0].digest == expected.digest
    below = imagenet.folders("disk/imagenet")
    assert prepare_as(below.parent, "imagenet")[0].digest == expected.digest


def test_labels_of_the_kit_are_translated_by_its_own_list(imagenet, prepare_as):
    """By number, class 1 of the kit is not the first wnid; taking it so would give every image a wrong label."""
    folder = imagenet.tars()
    manifest, _ = prepare_as(folder, "imagenet")
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    kit = folder / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_bytes(
        imagenet.kit["data/ILSVRC2012_validation_ground_truth.txt"]
    )
    (kit / "map_clsloc.txt").write_text("n02119789 1 kit_fox\nn01440764 2 tench\nn01530575 3 brambling\n")
    assert prepare_as(folder, "imagenet")[0].digest == manifest.digest
    (kit / "map_clsloc.txt").write_text("n01440764 1 tench\nn01530575 2 brambling\nn02119789 3 kit_fox\n")
    assert prepare_as(folder, "imagenet")[0].digest != manifest.digest


def truth(text):
    def change(imagenet):
        imagenet.kit["data/ILSVRC2012_validation_ground_truth.txt"] = text

    return change


def drop(part, name):
    def change(imagenet):
        del getattr(imagenet, part)[name]

    return change


def drop_class(imagenet):
    imagenet.train = {path: content for path, content in imagenet.train.items() if "n01530575" not in path}


FAULTS = {
    "label of no class": (
        truth(b"2\n1\n3\n9\n1\n2\n"),
        "ground_truth.txt line 4: '9' is not valid; expected the number",
    ),
    "label that is text": (
        truth(b"2\nfox\n3\n3\n1\n2\n"),
        "line 2: 'fox' is not valid; expected the number of a class, 1",
    ),
    "labels too few": (truth(b"2\n1\n3\n3\n1\n"), "ILSVRC2012_val_00000006.JPEG has no label in"),
    "labels too many": (truth(b"2\n1\n3\n3\n1\n2\n1\n"), "lacks ILSVRC2012_val_00000007.JPEG, which has a label in"),
    "labels binary": (truth(b"\xff\xfe\x00"), "ILSVRC2012_validation_ground_truth.txt is no text"),
    "image missing": (drop("val", "ILSVRC2012_val_00000002.JPEG"), "lacks ILSVRC2012_val_00000002.JPEG, which has"),
    "meta missing": (drop("kit", "data/meta.mat"), "neither ILSVRC2012_devkit_t12/data/meta.mat nor"),
    "meta damaged": (
        lambda imagenet: imagenet.kit.update({"data/meta.mat": b"MATLAB"}),
        "data/meta.mat cannot be read",
    ),
    "class missing": (drop_class, "train/n01530575/ is empty; every class needs images"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_contradicts_itself_is_refused_in_one_line(imagenet, prepare_as, fault):
    change, message = FAULTS[fault]
    change(imagenet)
    folder = imagenet.tars()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        prepare_as(folder, "imagenet")
    assert "\n" not in str(caught.value)
    assert not (imagenet.folder / "results").exists() or not list((imagenet.folder / "results").rglob("*.arrow"))


def test_what_is_missing_is_asked_for(imagenet, prepare_as):
    folder = imagenet.tars()
    for name, message in {
        "ILSVRC2012_devkit_t12.tar.gz": "no list has their labels; put ILSVRC2012_devkit_t12.tar.gz beside them",
        "ILSVRC2012_img_val.tar": "no validation images beside the others; put ILSVRC2012_img_val.tar or val/ there",
        "ILSVRC2012_img_train.tar": "put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12",
    }.items():
        (folder / name).unlink()
        with pytest.raises(UserError, match=re.escape(message)):
            prepare_as(folder, "imagenet")


def test_a_train_tar_that_broke_off_is_refused(imagenet, prepare_as):
    folder = imagenet.tars()
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:-30000])
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar: damaged tar"):
        prepare_as(folder, "imagenet")


def test_counts_that_are_not_the_official_ones_are_refused(imagenet, prepare_as):
    with pytest.raises(UserError, match=r"3 classes, but toy\.classes in datasets\.yaml expects 1,000; complete"):
        prepare_as(imagenet.tars(), "imagenet", classes=1000)
    message = r"15 images in train/, but toy\.images\.train in datasets\.yaml expects 1,281,167"
    with pytest.raises(UserError, match=message):
        prepare_as(imagenet.folder / "tars", "imagenet", images={"train": 1281167})
