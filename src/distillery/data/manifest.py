"""What a prepared data set holds: manifest.json beside its Arrow shards."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from distillery.experiment.reading import validate
from distillery.experiment.schema.block import Block, Statistics
from distillery.paths import REHEARSAL
from distillery.results import SEAL, file_hash, read_json, unusable

FILE_NAME = "manifest.json"
# Raise it when shards or manifest change in a way that older code or older shards cannot follow.
FORMAT = 1
SPLITS = ("train", "val")
SplitName = Literal["train", "holdout", "val", "unlabelled"]
# The splits that runs are trained on, where they are there; the second one's images have no labels.
TRAINING: list[SplitName] = ["train", "unlabelled"]


class Shard(Block):
    """One Arrow file of a split."""

    file: str
    images: PositiveInt
    bytes: PositiveInt
    sha256: str


class Split(Block):
    """The images of one split; `images_per_class` follows the order of the classes, all images that of their ids.

    Of the split `unlabelled`, all stand under the first class, for a reader needs some.

    `turned` counts those whose EXIF orientation asks to be turned; they are used as they are stored.
    """

    folder: str
    images: PositiveInt
    images_per_class: tuple[NonNegativeInt, ...]
    width: tuple[int, int]
    height: tuple[int, int]
    modes: dict[str, int]
    formats: dict[str, int]
    content: str
    turned: NonNegativeInt = 0
    shards: tuple[Shard, ...]


class Duplicates(Block):
    """Files with the same pixels: (training path, validation path) of each pair, and how many copies a split has.

    `contradicting` are the pairs of an image and a copy of it, in any split, that have different labels.
    """

    across_splits: tuple[tuple[str, str], ...]
    within_train: NonNegativeInt
    within_val: NonNegativeInt
    contradicting: tuple[tuple[str, str], ...] = ()


class Ignored(Block):
    """Files that were passed over: hidden ones, and those whose extension (the keys) is not an image's.

    Some of these are photographs all the same, of kinds that cannot be read: how many there are, by folder.
    """

    hidden: NonNegativeInt
    extensions: dict[str, int]
    photographs: dict[str, int] = Field(default={})


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
    statistics: Statistics  # over all pixels of the training images, or of the others where there are none
    splits: dict[SplitName, Split]
    duplicates: Duplicates
    ignored: Ignored
    skipped: tuple[SkippedImage, ...]

    @property
    def selection_split(self) -> SplitName:
        """The images that epochs are measured and chosen by: held-out ones where the data set has them."""
        return "holdout" if "holdout" in self.splits else "val"


def load_manifest(folder: Path, *, hash_new_shards: bool = True) -> Manifest:
    """Read the manifest of a prepared data set and check that its shards are all there.

    Raises:
        UserError: the data set is missing, incomplete, or made by another version.
    """
    manifest, path, made_by = read_manifest(folder), folder / FILE_NAME, _made_by(folder)
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        _check_size(folder / shard.file, shard.bytes, made_by)
        if hash_new_shards:
            _check_content(folder / shard.file, shard.sha256, path, made_by)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a prepared data set, whose shards need not be there.

    Raises:
        UserError: it is missing, damaged, or made by another version.
    """
    path, made_by = folder / FILE_NAME, _made_by(folder)
    content = read_json(path, made_by)
    if content.get("format") != FORMAT:
        raise unusable(path, f"format: {content.get('format')!r}, but this version reads {FORMAT}", made_by)
    manifest = validate(Manifest, {key: value for key, value in content.items() if key != SEAL}, path)
    _check_counts(manifest, path, made_by)
    return manifest


def _made_by(folder: Path) -> str:
    return f"distillery prepare {folder.name}{' --rehearsal' * folder.is_relative_to(REHEARSAL)}"


def _check_counts(manifest: Manifest, path: Path, made_by: str) -> None:
    for name, split in manifest.splits.items():
        counts = {"images_per_class": sum(split.images_per_class), "shards": sum(each.images for each in split.shards)}
        for key, count in counts.items():
            if count != split.images:
                raise unusable(path, f"splits.{name}.{key}: {count} images, but the split has {split.images}", made_by)
        if len(split.images_per_class) != len(manifest.classes):
            wrong = f"splits.{name}.images_per_class: {len(split.images_per_class)} numbers"
            raise unusable(path, f"{wrong}, but there are {len(manifest.classes)} classes", made_by)
        for shard in split.shards:
            if Path(shard.file).name != shard.file:
                raise unusable(path, f"splits.{name}.shards: {shard.file!r} is not a file of this folder", made_by)


def _check_content(path: Path, sha256: str, manifest: Path, made_by: str) -> None:
    """Hash a shard that is newer than its manifest: it was written or copied since.

    One that is as it should be is dated back, so that this is done once and not by every job; ``distillery verify``
    hashes all.
    """
    written = manifest.stat().st_mtime_ns
    if path.stat().st_mtime_ns <= written:
        return
    if file_hash(path) != sha256:
        raise unusable(path, "was changed since it was prepared: its checksum is another", made_by)
    with suppress(OSError):
        os.utime(path, ns=(written, written))


def _check_size(path: Path, expected: int, made_by: str) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}", made_by) from None
    if size != expected:
        raise unusable(path, f"{size} bytes instead of {expected}", made_by)
