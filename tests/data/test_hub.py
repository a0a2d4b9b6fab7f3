"""The datasets library's own data sets, read from its cache where they lie."""

import re

import pytest

from distillery.errors import UserError


@pytest.fixture
def hub(tmp_path, monkeypatch, noise_png):
    """Write a data set as the hub stores it, in Parquet files, and return its address."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(splits=("train", "validation"), labels=("crane", "bee", "ape"), folder="birds", **extra):
        kind = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("string")
        columns = {"image": datasets.Image(), "label": kind}
        columns |= {name: datasets.ClassLabel(names=["a", "b"]) for name in extra}
        number = 0
        for split in splits:
            rows = {"image": [], "label": [], **{name: [] for name in extra}}
            for row in range(9):
                number += 1
                rows["image"].append({"bytes": noise_png(number), "path": f"picture{row}.png"})
                rows["label"].append(row % 3 if labels else ("x", "y", "z")[row % 3])
                for name in extra:
                    rows[name].append(0)
            data = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
            path = tmp_path / folder / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.to_parquet(str(path))
        return f"hub:{tmp_path / folder}"

    return write


@pytest.mark.slow
def test_images_keep_their_bytes_and_classes_their_order(hub, place, noise_png):
    from distillery.data.arrow import ArrowImages

    manifest = place.prepare(hub(), classes=3, images={"train": 9})
    assert manifest.classes == ("crane", "bee", "ape")
    assert {name: split.folder for name, split in manifest.splits.items()} == {"train": "train", "val": "validation"}
    images = ArrowImages(place.output, manifest, "train")
    assert images.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    expected = [noise_png(number) for number in (1, 4, 7, 2, 5, 8, 3, 6, 9)]
    assert [bytes(images.encoded(index)) for index in range(9)] == expected
    assert images.path(0) == "train/00000000-picture0.png"


def test_labels_may_be_words(hub, place):
    assert place.prepare(hub(labels=None)).classes == ("x", "y", "z")


def test_a_column_of_labels_is_chosen_where_there_are_two(hub, place):
    address = hub(coarse=True)
    with pytest.raises(UserError, match=re.escape("needs one column of kind ClassLabel, found label, coarse among")):
        place.prepare(address)
    assert place.prepare(address, label="label").classes[1] == "bee"
    with pytest.raises(UserError, match=r"toy\.label: no column 'fine'; valid: coarse, image, label"):
        place.prepare(address, label="fine")


def test_splits_are_found_or_chosen(hub, place):
    address = hub(splits=("train", "dev"))
    with pytest.raises(UserError, match=r"no split 'val' or .* beside 'train' \(found dev, train\); say which to use"):
        place.prepare(address)
    assert place.prepare(address, val_folder="dev").splits["val"].images == 9


@pytest.mark.parametrize(
    ("splits", "chosen", "folder"),
    [
        (("validation",), {}, "validation"),
        (("train",), {}, "train"),
        (("train", "test"), {}, "test"),
        (("train", "dev"), {"val_folder": "train"}, "train"),
    ],
)
def test_a_split_may_be_there_for_evaluation_alone(hub, place, splits, chosen, folder):
    manifest = place.prepare(hub(splits=splits), split="evaluation", **chosen)
    assert {name: (split.folder, split.images) for name, split in manifest.splits.items()} == {"val": (folder, 9)}
    assert manifest.classes == ("crane", "bee", "ape")


def test_a_data_set_without_training_images_says_how_it_can_be_measured_on(hub, place):
    with pytest.raises(UserError, match=r"no split 'train'; it has test, validation; .* write `split: evaluation`"):
        place.prepare(hub(splits=("validation", "test")))
    with pytest.raises(UserError, match=r"no split 'val' or .* \(found dev, other\); say which to use"):
        place.prepare(hub(splits=("dev", "other"), folder="again"), split="evaluation")


def test_a_name_that_is_not_there_is_said_in_one_line(place, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = r"hub:/nowhere/birds: cannot be loaded: .*; without a network, run `distillery download toy` where there"
    with pytest.raises(UserError, match=message) as caught:
        place.prepare("hub:/nowhere/birds")
    assert "\n" not in str(caught.value)


def test_the_cache_cannot_be_pointed_to(hub, place):
    with pytest.raises(UserError, match="lies in no plain file, folder or tar that `embed: false` could point to"):
        place.prepare(hub(), embed=False)
