"""All images in class folders, and two lists of those for training and for testing."""

import io
from collections.abc import Iterator
from pathlib import Path

from distillery.data.layouts._official import find_marked_folder, images_below, lines_of, named_if_damaged, need
from distillery.data.layouts.folders import find_class_folders
from distillery.data.raw import RawFile, RawReader, shown
from distillery.data.sources import Scan, is_hidden
from distillery.data.trees import FolderTree, Tree, open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

_PICTURES = "Images"


def find_listed(
    name: str, dataset: Dataset, scratch: Path, archive: str, lists_archive: str | None, lists: dict[str, str]
) -> Scan:
    """List the images of ``Images/`` or the ``archive`` of it by the ``lists`` of each split, or ``lists_archive``.

    ``Images/<class>/<file>`` becomes ``train/<class>/<file>`` or ``val/...``; images on no list are left out.

    Raises:
        UserError: a list is missing or misshapen, or names an image that is not there.
    """
    top = open_tree(Path(dataset.path), scratch)
    if not isinstance(top, FolderTree):
        return find_class_folders(top, name, dataset)
    list_tree: Tree = top
    if lists_archive is not None and top.find(lists_archive):
        list_tree = open_tree(top.source / lists_archive, scratch)
    root = find_marked_folder(list_tree, lists.values())
    if root is None:
        return find_class_folders(top, name, dataset)
    pictures = top if _PICTURES in top.subfolders("") else open_tree(top.source / need(top, archive).path, scratch)
    scan = Scan({"train": "train", "val": "val"})
    present = images_below(pictures, _PICTURES, scan)
    taken: set[str] = set()
    with RawReader() as reader:
        for split, listing in lists.items():
            file = need(list_tree, root + listing)
            for path in _paths(list_tree, file, reader):
                where = f"{list_tree.source}: {shown(file.path)}: {shown(path)}"
                if path in taken:
                    raise UserError(f"{where} is listed twice; get the data set again")
                if path not in present or "/" not in path or is_hidden(path):
                    raise UserError(f"{where} is not in {pictures.source}: {_PICTURES}/; get the data set again")
                taken.add(path)
                scan.add(split, path.partition("/")[0], f"{split}/{path}", present[path])
    return scan


def _paths(tree: Tree, file: RawFile, reader: RawReader) -> Iterator[str]:
    """The paths on a list: the lines of a text, or ``file_list`` of a MATLAB file."""
    if not file.path.endswith(".mat"):
        yield from (line.strip() for _, line in lines_of(tree, file, reader))
        return
    from scipy.io import loadmat

    with named_if_damaged(tree, file.path):
        paths = [str(row[0][0]) for row in loadmat(io.BytesIO(reader.read(file)))["file_list"]]
    yield from paths
