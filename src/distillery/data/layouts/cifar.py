"""CIFAR-10 and CIFAR-100 as Toronto publishes them: tables of pixels in Python's pickle format."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from distillery.data.layouts._official import named_if_damaged, need, open_official
from distillery.data.layouts.folders import find_class_folders
from distillery.data.png import encode_png
from distillery.data.raw import MadeFile, RawReader, shown
from distillery.data.sources import Layout, Scan
from distillery.data.trees import Tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

ARCHIVES = ("cifar-10-python.tar.gz", "cifar-100-python.tar.gz")
_META_10, _META_100 = "batches.meta", "meta"
_SIDE = 32
# All that the official files are made of besides plain values; anything else might run code.
_SAFE = frozenset(
    {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }
)


def find_cifar(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images of the official archive or the folder that it unpacks to; or of class folders.

    Each row of pixels becomes a PNG, ``train/<class>/<official file name>`` or ``val/...``. Classes keep the official
    order; for CIFAR-100 they are the 100 fine ones.

    Raises:
        UserError: a file is missing or not what it should be.
    """
    tree, root = open_official(dataset, scratch, ARCHIVES, (_META_10, "test_batch", _META_100))
    if root is None:
        return find_class_folders(tree, name, dataset)
    ten = tree.find(root + "test_batch") is not None or tree.find(root + _META_10) is not None
    labels_key, names_key = ("labels", "label_names") if ten else ("fine_labels", "fine_label_names")
    batches = {
        "train": [f"data_batch_{number}" for number in range(1, 6)] if ten else ["train"],
        "val": ["test_batch" if ten else "test"],
    }
    with RawReader() as reader:
        meta = _unpickle(tree, root + (_META_10 if ten else _META_100), reader)
        classes = _class_names(tree, root, meta, names_key)
        scan = Scan({"train": "train", "val": "val"}, classes=classes)
        for split, files in batches.items():
            for file in files:
                _add_batch(scan, split, tree, root + file, _unpickle(tree, root + file, reader), labels_key)
    return scan


def _class_names(tree: Tree, root: str, meta: dict[str, Any], key: str) -> tuple[str, ...]:
    names = meta.get(key)
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise UserError(f"{tree.source}: {root}meta has no list of classes {key!r}; get the data set again")
    return tuple(_text(name) for name in names)


def _add_batch(scan: Scan, split: str, tree: Tree, path: str, batch: dict[str, Any], labels_key: str) -> None:
    pixels, labels, names = batch.get("data"), batch.get(labels_key), batch.get("filenames")
    assert scan.classes is not None
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3 * _SIDE * _SIDE,):
        raise UserError(f"{tree.source}: {shown(path)} has no rows of 3,072 pixels; get it again")
    if not isinstance(labels, list) or not isinstance(names, list) or not len(labels) == len(names) == len(pixels):
        raise UserError(
            f"{tree.source}: {shown(path)} has not as many {labels_key} and filenames as images ({len(pixels):,}); "
            "get it again"
        )
    images_NCHW = pixels.reshape(-1, 3, _SIDE, _SIDE)
    for image_CHW, label, name in zip(images_NCHW, labels, names, strict=True):
        if not isinstance(label, int) or not 0 <= label < len(scan.classes):
            raise UserError(
                f"{tree.source}: {shown(path)}: {shown(_text(name))} has label {label!r}; valid: 0 to "
                f"{len(scan.classes) - 1}"
            )
        image = f"{split}/{scan.classes[label]}/{_text(name)}"
        scan.add(split, scan.classes[label], image, MadeFile(image, encode_png(image_CHW.transpose(1, 2, 0))))


def _unpickle(tree: Tree, path: str, reader: RawReader) -> dict[str, Any]:
    with named_if_damaged(tree, path):
        table = _SafeUnpickler(io.BytesIO(reader.read(need(tree, path))), encoding="bytes").load()
    if not isinstance(table, dict):
        raise UserError(f"{tree.source}: {shown(path)} holds no table; get it again")
    return {_text(key): value for key, value in table.items()}


class _SafeUnpickler(pickle.Unpickler):
    """Rebuilds arrays and plain values only."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """The few functions that the official files name."""
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module, name)


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


LAYOUT = Layout(
    find_cifar, "put cifar-10-python.tar.gz or cifar-100-python.tar.gz there, or the folder that it unpacks to"
)
