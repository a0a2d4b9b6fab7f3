"""How data sets lie on disks: one file a layout, each of which turns a path into splits, classes and files."""

from collections.abc import Callable
from pathlib import Path

from distillery.data.layouts.cifar import find_cifar
from distillery.data.layouts.class_folders import find_class_folders
from distillery.data.layouts.cub200 import find_cub200
from distillery.data.layouts.hub import find_hub
from distillery.data.layouts.image_lists import find_mit67, find_stanford_dogs
from distillery.data.layouts.imagenet import find_imagenet
from distillery.data.layouts.tiny_imagenet import find_tiny_imagenet
from distillery.data.sources import RawImages, Scan, check_counts, is_hidden, missing_message, to_splits
from distillery.data.trees import FolderTree, open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset, Layout

_ARCHIVE_ENDINGS = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip")


def _find_folders(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """Class folders in a folder or an archive, or in a folder that holds one archive and nothing else."""
    tree = open_tree(Path(dataset.path), scratch)
    if isinstance(tree, FolderTree):
        visible = [entry for entry in tree.names("") if not is_hidden(entry)]
        if len(visible) == 1 and visible[0].endswith(_ARCHIVE_ENDINGS) and tree.find(visible[0]):
            tree = open_tree(tree.source / visible[0], scratch)
    return find_class_folders(tree, name, dataset)


LAYOUTS: dict[Layout, Callable[[str, Dataset, Path], Scan]] = {
    "folders": _find_folders,
    "imagenet": find_imagenet,
    "cub200": find_cub200,
    "cifar": find_cifar,
    "tiny-imagenet": find_tiny_imagenet,
    "stanford-dogs": find_stanford_dogs,
    "mit67": find_mit67,
}


def find_images(name: str, dataset: Dataset, scratch: Path) -> RawImages:
    """All images of a data set, wherever and however they lie; compressed tars are unpacked to tars in ``scratch``.

    Raises:
        UserError: there are none, or something in them contradicts the layout or the numbers expected.
    """
    if dataset.path.startswith(HUB_PREFIX):
        found = find_hub(name, dataset)
    elif Path(dataset.path).exists():
        found = LAYOUTS[dataset.layout](name, dataset, scratch)
    else:
        raise UserError(missing_message(name, dataset))
    if not any(files for by_class in found.files.values() for files in by_class.values()):
        raise UserError(missing_message(name, dataset))
    images = to_splits(found, dataset.path)
    check_counts(images, name, dataset)
    return images
