"""Images anywhere below a folder or in an archive, with a list of paths and labels for each split."""

import csv
from collections.abc import Iterator
from pathlib import Path

from distillery.data.layouts._official import find_marked_folder, images_below, lines_of, need, wrong_line
from distillery.data.layouts.folders import find_class_folders, has_class_folders, open_raw
from distillery.data.raw import RawFile, RawReader
from distillery.data.sources import Layout, Scan, is_hidden
from distillery.data.trees import Tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

LISTS = {"train": "train.csv", "val": "val.csv"}
_CLASSES = "classes.txt"
_HEADER = ["path", "label"]


def find_lists(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images that ``train.csv`` and ``val.csv`` name, with the columns ``path`` and ``label``.

    Paths are relative to the lists' folder; of a data set for evaluation, ``val.csv`` alone is read. Classes are
    sorted, or have the order of ``classes.txt``, a class a line. Images on no list are left out. Or class folders.

    Raises:
        UserError: a list is missing or misshapen, or names an image that is not there or was named before.
    """
    tree = open_raw(dataset, scratch)
    root = find_marked_folder(tree, LISTS.values())
    splits = ("val",) if dataset.split == "evaluation" else ("train", "val")
    if root is None and (has_class_folders(tree) or all(map(is_hidden, tree.subfolders("")))):
        return find_class_folders(tree, name, dataset)
    if root is None:
        raise UserError(f"{dataset.path}: neither lists nor class folders are there; {_BY_HAND}")
    with RawReader() as reader:
        listing = tree.find(root + _CLASSES)
        classes = None if listing is None else tuple(line.strip() for _, line in lines_of(tree, listing, reader))
        scan = Scan({split: split for split in splits}, classes=classes)
        present = images_below(tree, root.rstrip("/"), scan)
        for split in splits:
            file = need(tree, root + LISTS[split])
            for number, line, path, label in _rows(tree, file, reader):
                if path not in present:
                    raise wrong_line(tree, file, number, line, "no such image, or it was listed before")
                if not label or (classes is not None and label not in classes):
                    expected = f"a class of {_CLASSES}" if classes else "the name of a class"
                    raise wrong_line(tree, file, number, line, f"expected {expected} as label")
                scan.add(split, label, f"{split}/{path}", present.pop(path))
    return scan


def _rows(tree: Tree, file: RawFile, reader: RawReader) -> Iterator[tuple[int, str, str, str]]:
    """The number, text, path and label of every row below the header."""
    header = None
    for number, line in lines_of(tree, file, reader):
        cells = next(csv.reader([line]), [])
        if header is None:
            header = [cell.strip().lower() for cell in cells]
            if sorted(header) != sorted(_HEADER):
                raise wrong_line(tree, file, number, line, "expected the header path,label")
            continue
        if len(cells) != len(_HEADER):
            raise wrong_line(tree, file, number, line, "expected a path and a label; quote what has a comma")
        row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        yield number, line, row["path"].removeprefix("./"), row["label"]


_BY_HAND = "put train.csv and val.csv there (path,label below a header), with the images that they name"
LAYOUT = Layout(find_lists, _BY_HAND)
