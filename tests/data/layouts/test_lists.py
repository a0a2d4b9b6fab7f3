"""Lists of paths and labels, class folders without a split, and data sets for evaluation only."""

import pytest

from distillery.data.arrow import ArrowImages
from distillery.data.overview import describe_manifest
from distillery.data.prepare import summary
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.ledger import images_entry
from distillery.experiment.schema.dataset import Dataset


def listed(place, noise_png, **lists):
    for number in range(6):
        place.write(f"photos/{number % 2}/{number}.png", noise_png(number))
    for name, rows in lists.items():
        place.write(f"{name}.csv", "\n".join(["path,label", *rows, ""]).encode())
    return place


TRAIN = ["photos/0/0.png,bee", "photos/1/1.png,ape", '"photos/0/2.png","bee"', "./photos/1/3.png,ape"]
VAL = ["photos/0/4.png,bee", "photos/1/5.png,ape"]


def paths(place, manifest, split):
    images = ArrowImages(place.output, manifest, split)
    return [images.path(index) for index in range(len(images))]


def test_lists_say_split_and_label_and_images_on_none_are_left_out(place, noise_png):
    listed(place, noise_png, train=TRAIN[:3], val=VAL)
    manifest = place.prepare(layout="lists")
    assert manifest.classes == ("ape", "bee")
    assert paths(place, manifest, "train") == [f"train/photos/{path}.png" for path in ("1/1", "0/0", "0/2")]
    assert paths(place, manifest, "val") == ["val/photos/1/5.png", "val/photos/0/4.png"]
    assert place.prepare(place.tar(), layout="lists").digest == manifest.digest


def test_a_list_of_classes_orders_them(place, noise_png):
    listed(place, noise_png, train=TRAIN, val=VAL)
    place.write("classes.txt", b"bee\nape\n")
    assert place.prepare(layout="lists").classes == ("bee", "ape")
    place.write("classes.txt", b"bee\n")
    with pytest.raises(UserError, match=r"train\.csv line 3: .* expected a class of classes\.txt as label"):
        place.prepare(layout="lists")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["photos/0/9.png,bee"], r"val\.csv line 2: 'photos/0/9\.png,bee' is not valid; no such image, or"),
        (["../up.png,bee"], "no such image"),
        ([VAL[0], VAL[0]], r"val\.csv line 3: .* it was listed before"),
        ([TRAIN[0]], "it was listed before"),
        (["photos/0/4.png"], r"line 2: .* expected a path and a label"),
        (["photos/0/4.png,"], "expected the name of a class as label"),
        (["photos/0/4.png,cow"], "train/cow/ is missing"),
        ([], "is missing"),
    ],
)
def test_a_list_that_contradicts_the_images_is_refused_with_its_line(place, noise_png, rows, message):
    listed(place, noise_png, train=TRAIN, val=rows)
    with pytest.raises(UserError, match=message):
        place.prepare(layout="lists")
    place.write("val.csv", b"file;class\n")
    with pytest.raises(UserError, match="expected the header path,label"):
        place.prepare(layout="lists")


def test_labelled_photographs_alone_are_for_evaluation(place, noise_png):
    listed(place, noise_png, val=VAL)
    with pytest.raises(UserError, match=r"train\.csv is missing"):
        place.prepare(layout="lists")
    manifest = place.prepare(layout="lists", split="evaluation")
    assert list(manifest.splits) == ["val"]
    assert summary(manifest, place.output)[0].startswith("toy: 2 classes, 2 validation images in")
    assert "val" in describe_manifest(manifest)
    with pytest.raises(UserError, match="holds no images of the split train; it is for evaluation only"):
        ArrowImages(place.output, manifest, "train")
    place.write("classes.txt", b"ape\nbee\ncow\n")
    assert place.prepare(layout="lists", split="evaluation").splits["val"].images_per_class == (1, 1, 0)


def test_a_validation_folder_alone_is_for_evaluation(place):
    whole = place.fill().prepare()
    for path in (place.raw / "train").rglob("*.png"):
        path.unlink()
    alone = place.prepare(split="evaluation")
    assert alone.splits["val"].content == whole.splits["val"].content
    (place.raw / "val").rename(place.raw / "photos")
    with pytest.raises(UserError, match=r"no folder val/.* or write `layout: classes` for class folders"):
        place.prepare(split="evaluation")


def test_class_folders_without_a_split_are_for_evaluation_or_held_out_of(place, noise_png):
    for number in range(10):
        place.write(f"{'ab'[number % 2]}/{number}.png", noise_png(number))
    with pytest.raises(UserError, match=r"has no split; write `holdout: 0\.2` of 'toy'"):
        place.prepare(layout="classes")
    held = place.prepare(layout="classes", holdout=0.2)
    assert {split: part.images_per_class for split, part in held.splits.items()} == {"train": (4, 4), "val": (1, 1)}
    alone = place.prepare(layout="classes", split="evaluation")
    assert {split: part.images_per_class for split, part in alone.splits.items()} == {"val": (5, 5)}
    assert paths(place, alone, "val")[0] == "a/0.png"
    assert place.prepare(place.tar(top="all/"), layout="classes", split="evaluation").digest == alone.digest


def test_nothing_trains_on_a_data_set_for_evaluation(tmp_path):
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.yaml").write_text(
        "epochs: 1\nbatch: 2\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"
    )
    (tmp_path / "datasets.yaml").write_text("photos: {path: raw, split: evaluation}\n")
    (tmp_path / "p.yaml").write_text("p: {dataset: photos, runs: {a: {model: cifar_resnet8, recipe: r}}}\n")
    with pytest.raises(UserError, match=r"p\.runs\.a\.recipe: the data set is for evaluation"):
        load_experiment(tmp_path / "p.yaml")


def test_a_data_set_without_the_later_keys_is_known_as_before():
    assert "split" not in images_entry(Dataset(path="x"))
    assert "orientation" not in images_entry(Dataset(path="x"))
    assert images_entry(Dataset(path="x", split="evaluation"))["split"] == "evaluation"
