"""CIFAR's tables of pixels become images without loss."""

import io
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from distillery.data.arrow import ArrowImages
from distillery.errors import UserError
from distillery.experiment.loading import load_dataset


@pytest.mark.parametrize("hundred", [False, True])
def test_archive_and_folders_give_equal_shards(cifar, tmp_path, prepare_as, hundred):
    data = cifar(tmp_path, hundred)
    manifest, expected = prepare_as(data.archive(), "cifar", classes=3)
    assert manifest.classes == data.classes
    assert manifest.splits["train"].images == (10 if hundred else 15)
    assert prepare_as(data.unpacked(), "cifar")[1] == expected
    assert prepare_as(data.folders(), "cifar")[1] == expected


def test_pixels_and_labels_are_those_of_the_tables(cifar, place):
    data = cifar(place.folder)
    manifest = place.prepare(data.archive(), layout="cifar")
    for split, files in {"train": [f"data_batch_{n}" for n in range(1, 6)], "val": ["test_batch"]}.items():
        rows = [
            row
            for file in files
            for row in zip(*map(data.tables[file].get, (b"filenames", b"labels", b"data")), strict=True)
        ]
        images = ArrowImages(place.output, manifest, split)
        assert len(images) == len(rows)
        for index, (name, label, pixels) in enumerate(sorted(rows, key=lambda row: (row[1], row[0]))):
            assert images.path(index) == f"{split}/{data.classes[label]}/{name.decode()}"
            assert images.labels[index] == label
            found = np.asarray(Image.open(io.BytesIO(images.encoded(index))))
            assert (found == pixels.reshape(3, 32, 32).transpose(1, 2, 0)).all()


def test_the_official_order_of_classes_is_kept(cifar, tmp_path, prepare_as):
    data = cifar(tmp_path)
    data.classes = ("zebra", "ant", "moth")
    data.tables["batches.meta"] = {b"label_names": [b"zebra", b"ant", b"moth"]}
    assert prepare_as(data.archive(), "cifar")[0].classes == ("zebra", "ant", "moth")


def damage(file, key, value):
    return lambda data: data.tables[file].update({key: value})


FAULTS = {
    "label": (damage("test_batch", b"labels", [0, 1, 2, 3, 1, 2]), r"test_batch: \S+ has label 3; valid: 0 to 2"),
    "labels": (damage("data_batch_2", b"labels", [0]), r"data_batch_2 has not as many labels and filenames as images"),
    "pixels": (damage("data_batch_2", b"data", np.zeros((3, 7), np.uint8)), "data_batch_2 has no rows of 3,072 pixels"),
    "meta": (damage("batches.meta", b"label_names", []), "meta has no list of classes 'label_names'"),
    "missing": (lambda data: data.tables.pop("data_batch_4"), r"cifar-10-batches-py/data_batch_4 is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_misshapen_tables_are_refused_in_one_line(cifar, tmp_path, prepare_as, fault):
    data = cifar(tmp_path)
    change, message = FAULTS[fault]
    change(data)
    with pytest.raises(UserError, match=message) as caught:
        prepare_as(data.unpacked(), "cifar")
    assert "\n" not in str(caught.value)


def test_a_table_that_would_run_code_is_refused(cifar, tmp_path, prepare_as):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    folder = cifar(tmp_path).unpacked()
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        UserError, match=r"data_batch_3 cannot be read: it asks for posix\.mkdir, which no CIFAR file need"
    ):
        prepare_as(folder, "cifar")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q", b"hello", pickle.dumps([1])])
def test_a_table_that_is_damaged_is_refused(cifar, tmp_path, prepare_as, content):
    folder = cifar(tmp_path).unpacked()
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=r"data_batch_3 (cannot be read|holds no table)"):
        prepare_as(folder, "cifar")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_addresses_are_torchvisions_and_checksums_as_strong_as_there_are(name):
    from pathlib import Path

    import torchvision

    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    dataset = load_dataset(Path("config/datasets.yaml"), name)
    assert dataset.download.url == official.url
    assert dataset.download.checksum.startswith("sha256:")
