"""A small part of a data set: its first classes, and of each the first training images."""

from dataclasses import replace
from itertools import groupby

from distillery.data.raw import counted, shown
from distillery.data.sources import RawImage, RawImages
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Part


def take_part(images: RawImages, part: Part, path: str) -> RawImages:
    """Keep the first ``part.classes`` classes with their validation images and ``part.images`` training images each.

    Raises:
        UserError: there are fewer classes, or one has fewer training images.
    """
    if len(images.classes) < part.classes:
        number = counted(len(images.classes), "class", "classes")
        raise UserError(f"{path}: {number}, but part.classes in datasets.yaml takes {part.classes:,}")
    splits = {
        split: [image for image in members if image.label < part.classes] for split, members in images.splits.items()
    }
    train: list[RawImage] = []
    for label, members in groupby(splits.get("train", []), key=lambda image: image.label):
        first = list(members)[: part.images]
        if len(first) < part.images:
            folder = f"{images.folders['train']}/{shown(images.classes[label])}/"
            number = counted(len(first), "image")
            raise UserError(f"{path}: {folder} has {number}, but part.images in datasets.yaml takes {part.images:,}")
        train += first
    splits |= {"train": train} if train else {}
    return replace(images, classes=images.classes[: part.classes], splits=splits)
