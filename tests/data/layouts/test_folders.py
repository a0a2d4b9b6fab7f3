"""Splits, classes and images are found in the layouts people have, and faults are named."""

import re
from typing import get_args

import pytest

from distillery.data.layouts import find_images
from distillery.errors import UserError
from distillery.experiment.loading import load_dataset
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.dataset import Layout as LayoutName


def find(place, **options):
    dataset = Dataset(path=str(place.raw), **options)
    return find_images("toy", dataset, place.folder)


def paths(images, split):
    return [(image.path, image.label) for image in images.splits[split]]


def write_all(place, *names):
    for name in names:
        place.write(name, b"x")


def test_classes_and_files_are_sorted_and_nested_files_belong_to_their_class(place):
    write_all(
        place, "train/b/2.png", "train/b/10.png", "train/b/sub/1.png", "train/B/1.png", "val/b/1.png", "val/B/1.png"
    )
    images = find(place)
    assert images.classes == ("B", "b")
    assert paths(images, "train") == [
        ("train/B/1.png", 0),
        ("train/b/10.png", 1),
        ("train/b/2.png", 1),
        ("train/b/sub/1.png", 1),
    ]


@pytest.mark.parametrize("folder", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("top", ["", "cifar10/"])
def test_the_usual_names_are_found_also_below_one_folder(place, folder, top):
    write_all(place, f"{top}train/a/1.png", f"{top}{folder}/a/1.png", "README.txt", ".hidden/x")
    images = find(place)
    assert images.folders == {"train": "train", "val": folder}
    assert paths(images, "val") == [(f"{folder}/a/1.png", 0)]


def test_val_comes_before_test_and_can_be_chosen(place):
    write_all(place, "train/a/1.png", "val/a/1.png", "test/a/2.png")
    assert find(place).folders["val"] == "val"
    assert find(place, val_folder="test").folders["val"] == "test"


def test_hidden_files_and_other_extensions_are_counted(place):
    write_all(
        place,
        *(
            "train/a/1.PNG",
            "train/a/2.JPeG",
            "train/a/.DS_Store",
            "train/a/._1.png",
            "train/a/Thumbs.db",
            "train/a/x.txt",
        ),
        *("train/list.txt", "train/a/none", "val/a/1.webp", "val/__MACOSX/1.png", "val/.cache/a/1.png", "notes.pdf"),
    )
    images = find(place)
    assert [path for path, _ in paths(images, "train")] == ["train/a/1.PNG", "train/a/2.JPeG"]
    assert images.ignored.hidden == 4
    assert images.ignored.extensions == {"": 1, ".db": 1, ".txt": 2}


FAULTS = {
    "nothing": (
        [],
        {},
        "raw: no raw images for data set 'toy': put train/<class>/* and val/<class>/* there, or a tar or",
    ),
    "no images": (["train/a/x.txt", "val/a/x.txt"], {}, "no raw images for data set 'toy'"),
    "no train": (
        ["a/1.png", "b/1.png"],
        {},
        r"raw: no folder train/ in it (found a, b); put images into train/<class>/",
    ),
    "no train below": (["top/a/1.png"], {}, "no folder train/ in it (found top/a)"),
    "no val": (["train/a/1.png"], {}, "no folder val/, valid/, validation/ or test/ beside train/ (found nothing)"),
    "odd val": (
        ["train/a/1.png", "dev/a/1.png"],
        {},
        "(found dev); put images into val/<class>/, or name the folder with",
    ),
    "wrong val": (
        ["train/a/1.png", "dev/a/1.png"],
        {"val_folder": "devel"},
        "toy.val_folder: no folder 'devel' beside",
    ),
    "train as val": (
        ["train/a/1.png", "dev/a/1.png"],
        {"val_folder": "train"},
        "no folder 'train' beside train/; valid: dev",
    ),
    "two vals": (
        ["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
        {},
        "has val, valid; say which to use with `val_folder`",
    ),
    "class only in train": (
        ["train/a/1.png", "train/b/1.png", "val/a/1.png"],
        {},
        "val/b/ is missing; every class needs",
    ),
    "class only in val": (["train/a/1.png", "val/b/1.png", "val/a/1.png"], {}, "train/b/ is missing; every class"),
    "empty class": (["train/a/1.png", "train/b/x.txt", "val/a/1.png", "val/b/1.png"], {}, "train/b/ is empty; every"),
    "many": (
        ["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/1.png"],
        {},
        "missing (and 1 more such classes)",
    ),
    "no class folder": (
        ["train/1.png", "val/a/1.png"],
        {},
        "train/1.png lies in no class folder; put images into train/",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_in_one_line(place, fault):
    names, options, message = FAULTS[fault]
    place.raw.mkdir()
    write_all(place, *names)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        find(place, **options)
    assert str(caught.value).startswith(str(place.raw))
    assert "\n" not in str(caught.value)


def test_a_class_folder_that_is_empty_on_disk_is_named(place):
    write_all(place, "train/a/1.png", "val/a/1.png")
    (place.raw / "val" / "b").mkdir()
    with pytest.raises(UserError, match="train/b/ is missing"):
        find(place)
    (place.raw / "train" / "b").mkdir()
    with pytest.raises(UserError, match="train/b/ is empty"):
        find(place)


@pytest.mark.parametrize("name", get_args(LayoutName))
def test_every_layout_takes_class_folders_and_says_what_to_do_without_images(name, place):
    line = r"no raw images for data set 'toy': put .* there.*, or change datasets\.yaml$"
    with pytest.raises(UserError, match=line):
        find(place, layout=name)
    write_all(place, ".cache/x", "README.txt")
    with pytest.raises(UserError, match=line):
        find(place, layout=name)
    write_all(place, "train/a/1.png", "val/a/1.png")
    assert find(place, layout=name).classes == ("a",)


def test_a_misspelt_layout_is_one_line(tmp_path):
    (tmp_path / "datasets.yaml").write_text("toy: {path: data/toy, layout: tiny-imagnet}\n")
    with pytest.raises(UserError, match=r"toy\.layout: 'tiny-imagnet' is not valid; did you mean 'tiny-imagenet' or"):
        load_dataset(tmp_path / "datasets.yaml", "toy")
