"""What a prepared data set holds: manifest.json beside its Arrow shards."""

import json
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from distillery.errors import UserError
from distillery.experiment.reading import validate
from distillery.experiment.schema.block import Block, Triple

FILE_NAME = "manifest.json"
# Raise it when shards or manifest change in a way that older code or older shards cannot follow.
FORMAT = 1
SPLITS = ("train", "val")
SplitName = Literal["train", "holdout", "val"]


class PixelStatistics(Block):
    """Per-channel mean and standard deviation over all pixels of the training images (RGB, pixels in [0, 1])."""

    mean: Triple
    std: Triple


class Shard(Block):
    """One Arrow file of a split."""

    file: str
    images: PositiveInt
    bytes: PositiveInt
    sha256: str


class Split(Block):
    """The images of one split; `images_per_class` follows the order of the classes, all images that of their ids."""

    folder: str
    images: PositiveInt
    images_per_class: tuple[NonNegativeInt, ...]
    width: tuple[int, int]
    height: tuple[int, int]
    modes: dict[str, int]
    formats: dict[str, int]
    content: str
    shards: tuple[Shard, ...]


class Duplicates(Block):
    """Files with the same bytes: (training path, validation path) of each pair, and how many copies a split has."""

    across_splits: tuple[tuple[str, str], ...]
    within_train: NonNegativeInt
    within_val: NonNegativeInt


class Ignored(Block):
    """Files that were passed over: hidden ones, and those whose extension (the keys) is not an image's."""

    hidden: NonNegativeInt
    extensions: dict[str, int]


class SkippedImage(Block):
    """An image that could not be decoded, left out because the data set says `on_corrupt: skip`."""

    path: str
    reason: str


class Manifest(Block):
    """A prepared data set. Sample ids count a split's images in order: by class, then by path.

    ``digest`` is a SHA-256 over the classes and, in order, every image's label and bytes: all that decides pixels and
    labels, and nothing about how they are stored.
    """

    format: Literal[1] = 1
    name: str
    digest: str
    classes: tuple[str, ...]
    statistics: PixelStatistics
    splits: dict[SplitName, Split]
    duplicates: Duplicates
    ignored: Ignored
    skipped: tuple[SkippedImage, ...]

    @property
    def selection_split(self) -> SplitName:
        """The images that epochs are measured and chosen by: held-out ones where the data set has them."""
        return "holdout" if "holdout" in self.splits else "val"


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared data set and check that its shards are all there.

    Raises:
        UserError: the data set is missing, incomplete, or made by another version.
    """
    path, again = folder / FILE_NAME, f"distillery prepare {folder.name}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; first make it with: {again}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not valid JSON"
        raise UserError(f"{path}: cannot be read: {reason}; make it anew with: {again}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path}: format: {found!r}, but this version reads {FORMAT}; make it anew with: {again}")
    manifest = validate(Manifest, content, path)
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        _check_size(folder / shard.file, shard.bytes, again)
    return manifest


def _check_size(path: Path, expected: int, again: str) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; make it anew with: {again}") from None
    if size != expected:
        raise UserError(f"{path}: {size} bytes instead of {expected}; make it anew with: {again}")
