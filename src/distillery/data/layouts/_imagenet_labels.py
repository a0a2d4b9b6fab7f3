"""The classes of ImageNet's flat validation images, from whichever list there is."""

import io
from pathlib import Path
from typing import Any

from distillery.data.layouts._official import find_marked_folder, lines_of, named_if_damaged, need, wrong_line
from distillery.data.raw import RawFile, RawReader, shown
from distillery.data.trees import Tree, open_tree
from distillery.errors import UserError

_KITS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12.tar")
_SOLUTION = "LOC_val_solution.csv"
VALIDATION_STEM = "ILSVRC2012_val_"
_GROUND_TRUTH, _META, _MAP = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "map_clsloc.txt"


def validation_labels(top: Tree, scratch: Path) -> tuple[dict[str, str], str]:
    """The wnid of each validation image by its stem, and the name of the list for messages.

    Read from, in this order: the list itself beside the images, the development kit's folder or archive (line i of the
    ground truth is the number of image i's class, which ``meta.mat`` or ``map_clsloc.txt`` translates), and
    ``LOC_val_solution.csv`` of the challenge's later archive.

    Raises:
        UserError: there is no list, or it is misshapen.
    """
    with RawReader() as reader:
        for tree in (top, *(open_tree(top.source / kit, scratch) for kit in _KITS if top.find(kit))):
            for folder in ("", "data/"):
                root = find_marked_folder(tree, [folder + _GROUND_TRUTH])
                if root is not None:
                    return _from_ground_truth(tree, root + folder, reader)
        solution = top.find(_SOLUTION)
        if solution is not None:
            return _from_solution(top, solution, reader), str(top.source / _SOLUTION)
    raise UserError(
        f"{top.source}: the validation images lie flat and no list has their labels; put {_KITS[0]} beside them"
    )


def _from_ground_truth(tree: Tree, root: str, reader: RawReader) -> tuple[dict[str, str], str]:
    wnids = _numbered_wnids(tree, root, reader)
    truth = need(tree, root + _GROUND_TRUTH)
    labels: dict[str, str] = {}
    for number, line in lines_of(tree, truth, reader):
        if not line.strip().isdigit() or int(line) not in wnids:
            raise wrong_line(tree, truth, number, line, f"expected the number of a class, 1 to {max(wnids)}")
        labels[f"{VALIDATION_STEM}{number:08d}"] = wnids[int(line)]
    return labels, str(tree.source / truth.path)


def _numbered_wnids(tree: Tree, root: str, reader: RawReader) -> dict[int, str]:
    """The kit's own numbers of the classes; they are not sorted by wnid."""
    meta, listing = tree.find(root + _META), tree.find(root + _MAP)
    if meta is not None:
        return _read_meta(tree, meta, reader)
    if listing is None:
        raise UserError(f"{tree.source}: neither {root}{_META} nor {root}{_MAP} says which class a number means")
    wnids: dict[int, str] = {}
    for number, line in lines_of(tree, listing, reader):
        words = line.split()
        if len(words) < 2 or not words[1].isdigit():
            raise wrong_line(tree, listing, number, line, "expected a wnid and a class's number")
        wnids[int(words[1])] = words[0]
    return wnids


def _read_meta(tree: Tree, meta: RawFile, reader: RawReader) -> dict[int, str]:
    """``synsets`` of meta.mat: numbers and wnids of the classes, which have no children, and of those above them."""
    from scipy.io import loadmat

    with named_if_damaged(tree, meta.path):
        synsets: Any = loadmat(io.BytesIO(reader.read(meta)), squeeze_me=True)["synsets"]
        rows = zip(
            synsets["ILSVRC2012_ID"].tolist(), synsets["WNID"].tolist(), synsets["num_children"].tolist(), strict=True
        )
        wnids = {int(number): str(wnid) for number, wnid, children in rows if int(children) == 0}
    if not wnids:
        raise UserError(f"{tree.source}: {shown(meta.path)} names no classes; get it again")
    return wnids


def _from_solution(top: Tree, solution: RawFile, reader: RawReader) -> dict[str, str]:
    """Rows ``<stem>,<wnid> <box> <wnid> <box> ...`` below a heading; all boxes of an image have its class."""
    labels: dict[str, str] = {}
    for number, line in lines_of(top, solution, reader):
        stem, _, boxes = line.partition(",")
        if number == 1 and not stem.startswith(VALIDATION_STEM):
            continue
        words = boxes.split()
        if not words or stem in labels:
            raise wrong_line(top, solution, number, line, "expected an image, once, a comma, and its wnid")
        labels[stem] = words[0]
    return labels
