"""CUB-200-2011 as Caltech publishes it: all images in class folders, and lists of labels and of the split."""

from pathlib import Path

from distillery.data.layouts._official import images_below, lines_of, need, open_official, wrong_line
from distillery.data.layouts.folders import find_class_folders
from distillery.data.raw import RawFile, RawReader, shown
from distillery.data.sources import Layout, Scan
from distillery.data.trees import Tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

ARCHIVES = ("CUB_200_2011.tgz", "CUB_200_2011.tar.gz", "CUB_200_2011.tar")
_IMAGES, _LABELS, _CLASSES, _SPLIT = "images.txt", "image_class_labels.txt", "classes.txt", "train_test_split.txt"


def find_cub200(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images by the official split, from the tgz or the folder that it unpacks to; or from class folders.

    ``images.txt`` names the files, ``image_class_labels.txt`` and ``classes.txt`` their classes (numbered from 1), and
    ``train_test_split.txt`` says 1 for training and 0 for testing. An image becomes ``train/<class>/<file>`` or
    ``val/<class>/<file>``.

    Raises:
        UserError: a list is missing, misshapen, or contradicts the files.
    """
    tree, root = open_official(dataset, scratch, ARCHIVES, (_SPLIT,))
    if root is None:
        return find_class_folders(tree, name, dataset)
    with RawReader() as reader:
        paths = _read_pairs(tree, need(tree, root + _IMAGES), reader, "an image's number and path")
        labels = _read_pairs(tree, need(tree, root + _LABELS), reader, "an image's number and its class's")
        classes = _read_pairs(tree, need(tree, root + _CLASSES), reader, "a class's number and name")
        training = _read_pairs(tree, need(tree, root + _SPLIT), reader, "an image's number and 1 or 0")
    for listing, content in ((_LABELS, labels), (_SPLIT, training)):
        _check_numbers(tree, root, listing, set(content), set(paths))
    scan = Scan({"train": "train", "val": "val"})
    base = f"{root}images"
    present = images_below(tree, base, scan)
    for number, path in paths.items():
        folder, _, file_name = path.partition("/")
        where = f"{tree.source}: {root}{{}}: image {number} ({shown(path)}) "
        if path not in present:
            raise UserError(where.format(_IMAGES) + "is not in images/; get the data set again")
        if classes.get(labels[number]) != folder:
            raise UserError(
                where.format(_LABELS)
                + f"has class {shown(labels[number])}, which {_CLASSES} does not name {shown(folder)}"
            )
        if training[number] not in ("0", "1"):
            raise UserError(where.format(_SPLIT) + f"has {shown(training[number])!r}; valid: 1 (training), 0 (testing)")
        split = "train" if training[number] == "1" else "val"
        scan.add(split, folder, f"{split}/{folder}/{file_name}", present.pop(path))
    if present:
        raise UserError(f"{tree.source}: {root}images/{shown(min(present))} is not in {_IMAGES}; remove it")
    return scan


def _read_pairs(tree: Tree, file: RawFile, reader: RawReader, expected: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for number, line in lines_of(tree, file, reader):
        words = line.split(maxsplit=1)
        if len(words) != 2 or not words[0].isdigit() or words[0] in pairs:
            raise wrong_line(tree, file, number, line, f"expected {expected}, each number once")
        pairs[words[0]] = words[1].strip()
    return pairs


def _check_numbers(tree: Tree, root: str, listing: str, scan: set[str], expected: set[str]) -> None:
    odd = scan ^ expected
    if odd:
        number = min(odd, key=lambda text: (len(text), text))
        where = "lacks" if number in expected else "has"
        raise UserError(
            f"{tree.source}: {root}{listing} {where} image {number}, unlike {_IMAGES} "
            f"({len(scan):,} and {len(expected):,} images); get the data set again"
        )


LAYOUT = Layout(find_cub200, "put CUB_200_2011.tgz there, or the folder that it unpacks to")
