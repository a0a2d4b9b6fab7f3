"""CUB-200-2011 by its own lists, from the archive, unpacked, or as class folders."""

import re

import pytest

from distillery.errors import UserError


def test_archive_and_folders_give_equal_shards(cub, prepare_as):
    manifest, expected = prepare_as(cub.archive(), "cub200", classes=3, images={"train": 12, "val": 6})
    assert manifest.classes == ("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
    assert manifest.splits["val"].images_per_class == (2, 2, 2)
    assert prepare_as(cub.unpacked(), "cub200")[1] == expected
    assert prepare_as(cub.folder / "archive" / "CUB_200_2011.tgz", "cub200")[1] == expected
    assert prepare_as(cub.folder / "unpacked" / "CUB_200_2011", "cub200")[1] == expected
    assert prepare_as(cub.folders(), "cub200")[1] == expected


def edit(name, old, new):
    def change(cub):
        assert old in cub.lists[name]
        cub.lists[name] = cub.lists[name].replace(old, new, 1)

    return change


def without_image(cub):
    del cub.contents[sorted(cub.contents)[3]]


def with_image(cub):
    cub.contents["002.Laysan_Albatross/extra.jpg"] = next(iter(cub.contents.values()))


FAULTS = {
    "wrong label": (
        edit("image_class_labels.txt", "\n3 1\n", "\n3 2\n"),
        "image_class_labels.txt: image 3 (001.Black_footed_Albatross/Black_footed_Albatross_0002_79.jpg) has class 2, "
        "which classes.txt does not name 001.Black_footed_Albatross",
    ),
    "label of no class": (edit("image_class_labels.txt", "\n3 1\n", "\n3 9\n"), "image 3 (001."),
    "missing label": (edit("image_class_labels.txt", "\n3 1\n", "\n"), "image_class_labels.txt lacks image 3, unlike"),
    "split of another": (edit("train_test_split.txt", "\n18 1\n", "\n99 1\n"), "train_test_split.txt lacks image 18"),
    "twice": (edit("train_test_split.txt", "\n3 1\n", "\n2 1\n"), "train_test_split.txt line 3: '2 1' is not valid"),
    "odd split": (edit("train_test_split.txt", "\n3 1\n", "\n3 7\n"), "has '7'; valid: 1 (training), 0 (testing)"),
    "misshapen": (edit("images.txt", "4 001.Bl", "four 001.Bl"), "images.txt line 4: 'four 001.Black"),
    "image missing": (
        without_image,
        "image 4 (001.Black_footed_Albatross/Black_footed_Albatross_0003_79.jpg) is not in",
    ),
    "image too many": (with_image, "images/002.Laysan_Albatross/extra.jpg is not in images.txt; remove it"),
    "list missing": (lambda cub: cub.lists.pop("classes.txt"), "CUB_200_2011/classes.txt is missing; get the data set"),
    "class missing": (edit("train_test_split.txt", "1 0\n", "1 1\n"), ""),
}


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "class missing"])
def test_lists_that_contradict_the_images_are_refused_in_one_line(cub, prepare_as, fault):
    change, message = FAULTS[fault]
    change(cub)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        prepare_as(cub.unpacked(), "cub200")
    assert "\n" not in str(caught.value)


def test_a_class_without_test_images_is_refused(cub, prepare_as):
    cub.lists["train_test_split.txt"] = cub.lists["train_test_split.txt"].replace("1 0\n", "1 1\n", 1)
    cub.lists["train_test_split.txt"] = cub.lists["train_test_split.txt"].replace("\n4 0\n", "\n4 1\n")
    with pytest.raises(UserError, match=r"val/001\.Black_footed_Albatross/ is missing; every class needs images"):
        prepare_as(cub.archive(), "cub200")


def test_a_damaged_archive_is_refused(cub, prepare_as):
    path = cub.archive() / "CUB_200_2011.tgz"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"CUB_200_2011\.tgz: damaged archive: .*; get it again"):
        prepare_as(path.parent, "cub200")
