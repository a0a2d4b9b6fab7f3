"""Tiny-ImageNet-200 as Stanford publishes it: a zip whose validation images lie flat, with a list of their labels."""

from pathlib import Path

from distillery.data.layouts._official import images_below, lines_of, need, open_official, wrong_line
from distillery.data.layouts.folders import add_class_folders, find_class_folders
from distillery.data.raw import RawReader, shown
from distillery.data.sources import Layout, Scan
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

ARCHIVES = ("tiny-imagenet-200.zip", "tiny-imagenet-200.tar.gz", "tiny-imagenet-200.tgz", "tiny-imagenet-200.tar")
_ANNOTATIONS = "val/val_annotations.txt"


def find_tiny_imagenet(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images of the zip or the folder that it unpacks to; or of class folders.

    Training images lie in ``train/<wnid>/images/``, validation images in ``val/images/``; the first two columns of
    ``val/val_annotations.txt`` are their names and wnids. A validation image becomes ``val/<wnid>/<file>``. The test
    images have no labels and are passed over. Without ``val/images`` they were sorted into class folders.

    Raises:
        UserError: the list is misshapen or contradicts the files.
    """
    tree, root = open_official(dataset, scratch, ARCHIVES, (_ANNOTATIONS,))
    if root is None or "images" not in tree.subfolders(f"{root}val"):
        return find_class_folders(tree, name, dataset)
    scan = Scan({"train": "train", "val": "val"})
    add_class_folders(scan, "train", tree, root, "train", dataset.path)
    annotations = need(tree, root + _ANNOTATIONS)
    base = f"{root}val/images"
    present = images_below(tree, base, scan)
    with RawReader() as reader:
        for number, line in lines_of(tree, annotations, reader):
            words = line.split()
            if len(words) < 2 or words[0] not in present:
                raise wrong_line(
                    tree, annotations, number, line, "expected an image of val/images/, once, and its wnid"
                )
            if words[1] not in scan.files["train"]:
                raise wrong_line(tree, annotations, number, line, f"no class {shown(words[1])} in train/")
            scan.add("val", words[1], f"val/{words[1]}/{words[0]}", present.pop(words[0]))
    if present:
        raise UserError(f"{tree.source}: {base}/{shown(min(present))} has no label in {_ANNOTATIONS}; get it again")
    return scan


LAYOUT = Layout(find_tiny_imagenet, "put tiny-imagenet-200.zip there, or the folder that it unpacks to")
