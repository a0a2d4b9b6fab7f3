"""From what was found in the shards to the manifest."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from distillery.data.manifest import Duplicates, Manifest, Shard, SkippedImage, Split
from distillery.data.shards import ShardFacts
from distillery.data.sources import RawImage, RawImages
from distillery.experiment.schema.block import Statistics


@dataclass(frozen=True)
class WrittenShard:
    """A shard that holds images, its final name, what was planned for it and what was found."""

    file: str
    images: tuple[RawImage, ...]
    facts: ShardFacts

    def kept(self) -> Iterator[tuple[RawImage, bytes, bytes]]:
        """The images in it, the SHA-256 of their files and a hash of their pixels, in order."""
        for position, digest, pixels in zip(self.facts.kept, self.facts.hashes, self.facts.pixels, strict=True):
            yield self.images[position], digest, pixels


def describe(
    name: str, images: RawImages, written: dict[str, list[WrittenShard]], skipped: Sequence[tuple[str, str]]
) -> Manifest:
    """Assemble the manifest of a data set from its shards, by split.

    Raises:
        ValidationError: a class has no images left; the caller has checked that.
    """
    splits = {split: _describe_split(images, split, shards) for split, shards in written.items()}
    train, unlabelled = written.get("train", []), written.get("unlabelled", [])
    seen = train or unlabelled or written["val"]
    identity = {"classes": images.classes} | {split: described.content for split, described in splits.items()}
    return Manifest.model_validate(
        {
            "name": name,
            "digest": hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
            "classes": images.classes,
            "statistics": pixel_statistics([shard.facts for shard in seen]),
            "splits": splits,
            "duplicates": _find_duplicates([*train, *written.get("holdout", [])], written["val"], unlabelled),
            "ignored": images.ignored,
            "skipped": [SkippedImage(path=path, reason=reason) for path, reason in skipped],
        }
    )


def pixel_statistics(seen: Sequence[ShardFacts]) -> Statistics:
    """Mean and population standard deviation of each channel of all pixels in some shards.

    The sums are exact integers, so the order of images and the number of processes cannot change a digit.
    """
    pixels = sum(facts.count for facts in seen)
    means, deviations = [], []
    for channel in range(3):
        total = sum(int(facts.sums[channel]) for facts in seen)
        squares = sum(int(facts.squares[channel]) for facts in seen)
        means.append(total / (255 * pixels))
        deviations.append(math.sqrt((pixels * squares - total * total) / (255 * pixels) ** 2))
    return Statistics.model_validate({"mean": means, "std": deviations})


def _describe_split(images: RawImages, split: str, shards: list[WrittenShard]) -> Split:
    modes: Counter[str] = Counter()
    formats: Counter[str] = Counter()
    content = hashlib.sha256()
    per_class = [0] * len(images.classes)
    for shard in shards:
        modes += shard.facts.modes
        formats += shard.facts.formats
        for image, digest, _ in shard.kept():
            per_class[image.label] += 1
            content.update(image.label.to_bytes(8, "little") + digest)
    widths = [width for shard in shards for width in shard.facts.widths]
    heights = [height for shard in shards for height in shard.facts.heights]
    return Split(
        folder=images.folders[split],
        images=sum(per_class),
        images_per_class=tuple(per_class),
        width=(min(widths), max(widths)),
        height=(min(heights), max(heights)),
        modes=dict(sorted(modes.items())),
        formats=dict(sorted(formats.items())),
        content=content.hexdigest(),
        turned=sum(shard.facts.turned for shard in shards),
        shards=tuple(
            Shard(file=shard.file, images=len(shard.facts.kept), bytes=shard.facts.size, sha256=shard.facts.sha256)
            for shard in shards
        ),
    )


def _find_duplicates(train: list[WrittenShard], val: list[WrittenShard], unlabelled: list[WrittenShard]) -> Duplicates:
    first: dict[bytes, RawImage] = {}
    contradicting: list[tuple[str, str]] = []

    def find(image: RawImage, pixels: bytes) -> RawImage | None:
        """The image that has been seen with these pixels."""
        original = first.setdefault(pixels, image)
        if original.label != image.label:
            contradicting.append((original.path, image.path))
        return None if original is image else original

    within_train = sum(find(image, pixels) is not None for shard in train for image, _, pixels in shard.kept())
    training = set(first)
    across, seen = [], set()
    within_val = 0
    for image, _, pixels in (row for shard in val for row in shard.kept()):
        original = find(image, pixels)
        within_val += pixels in seen
        seen.add(pixels)
        if original is not None and pixels in training:
            across.append((original.path, image.path))
    known = {pixels: image for shard in val for image, _, pixels in shard.kept()}
    for image, _, pixels in (row for shard in unlabelled for row in shard.kept()):
        if pixels in known:
            across.append((image.path, known[pixels].path))
    return Duplicates(
        across_splits=tuple(across),
        within_train=within_train,
        within_val=within_val,
        contradicting=tuple(contradicting),
    )
