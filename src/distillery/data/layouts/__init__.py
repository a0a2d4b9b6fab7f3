"""How data sets lie on disks: one file a layout, each of which turns a path into splits, classes and files.

A layout's name is that of its file, with dashes. Files that begin with an underscore are shared by several.
"""

from importlib import import_module
from pathlib import Path

from distillery.data.hub import find_hub
from distillery.data.part import take_part
from distillery.data.raw import counted, shown
from distillery.data.sources import Layout, RawImages, check_counts, to_splits
from distillery.errors import UserError
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset


def load_layout(name: str) -> Layout:
    """The layout of a name that datasets.yaml may use."""
    layout: Layout = import_module(f"{__name__}.{name.replace('-', '_')}").LAYOUT
    return layout


def find_images(name: str, dataset: Dataset, scratch: Path) -> RawImages:
    """All images of a data set, wherever and however they lie; compressed tars are unpacked to tars in ``scratch``.

    Raises:
        UserError: there are none, or something in them contradicts the layout or the numbers expected.
    """
    if dataset.path.startswith(HUB_PREFIX):
        found = find_hub(name, dataset)
    elif Path(dataset.path).exists():
        found = load_layout(dataset.layout).find(name, dataset, scratch)
    else:
        raise missing_images(name, dataset)
    if not any(files for by_class in found.files.values() for files in by_class.values()):
        unread = +found.photographs
        if unread:
            number = counted(unread.total(), "photograph")
            raise UserError(
                f"{dataset.path}: {number} of a kind that cannot be read, e.g. in {shown(min(unread))}/, and no other "
                "images; convert them to JPEG or PNG"
            )
        raise missing_images(name, dataset)
    images = to_splits(found, dataset.path)
    if dataset.part is not None:
        images = take_part(images, dataset.part, dataset.path)
    check_counts(images, name, dataset)
    return images


def missing_images(name: str, dataset: Dataset) -> UserError:
    """The error for a data set whose raw images are not there; it says what to do."""
    by_hand = load_layout(dataset.layout).by_hand
    return UserError(f"{dataset.path}: no raw images for data set {name!r}: {by_hand}, or change datasets.yaml")
