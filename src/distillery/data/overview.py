"""A manifest as tables that a person can read."""

from collections.abc import Mapping

from tabulate import tabulate

from distillery.data.manifest import Manifest

# So many classes are listed one by one; of more, the smallest and the largest.
_LISTED = 20
_EXTREMES = 5


def describe_manifest(manifest: Manifest) -> str:
    """Splits, classes, pixels, and what is odd: copies, files passed over, images left out."""
    statistics = manifest.statistics
    mean, std = (", ".join(f"{value:.4f}" for value in triple) for triple in (statistics.mean, statistics.std))
    parts = [
        f"{manifest.name}: {len(manifest.classes)} classes, digest {manifest.digest[:16]}",
        _table(
            _split_rows(manifest), ("split", "images", "a class", "width", "height", "format", "mode", "shards", "MB")
        ),
        f"Training pixels (red, green, blue; from 0 to 1): mean {mean}; deviation {std}",
        _table(_class_rows(manifest), ("class", *manifest.splits)),
        _table(_odd_rows(manifest), ("odd", "count", "for example")),
    ]
    return "\n\n".join(parts)


def _split_rows(manifest: Manifest) -> list[tuple[object, ...]]:
    return [
        (
            name,
            split.images,
            "none" if name == "unlabelled" else _span(min(split.images_per_class), max(split.images_per_class)),
            _span(*split.width),
            _span(*split.height),
            _counts(split.formats),
            _counts(split.modes),
            len(split.shards),
            sum(shard.bytes for shard in split.shards) / 1e6,
        )
        for name, split in manifest.splits.items()
    ]


def _class_rows(manifest: Manifest) -> list[tuple[object, ...]]:
    per_class = [split.images_per_class for name, split in manifest.splits.items() if name != "unlabelled"]
    rows: list[tuple[object, ...]] = list(zip(manifest.classes, *per_class, strict=True))
    if len(rows) <= _LISTED:
        return rows
    rows.sort(key=lambda row: row[1])  # type: ignore[arg-type,return-value]  # a stable sort by training images
    between = (f"... {len(rows) - 2 * _EXTREMES} between ...", *("" for _ in per_class))
    return [*rows[:_EXTREMES], between, *rows[-_EXTREMES:]]


def _odd_rows(manifest: Manifest) -> list[tuple[object, ...]]:
    copies, ignored, skipped = manifest.duplicates, manifest.ignored, manifest.skipped
    pair = " = ".join(copies.across_splits[0]) if copies.across_splits else ""
    left_out = f"{skipped[0].path}: {skipped[0].reason}" if skipped else ""
    return [
        ("validation images that are also training images", len(copies.across_splits), pair),
        ("copies among the training images", copies.within_train, ""),
        ("copies among the validation images", copies.within_val, ""),
        ("copies under another label", len(copies.contradicting), " = ".join(next(iter(copies.contradicting), ()))),
        ("images left out, for they cannot be decoded", len(skipped), left_out),
        ("files passed over: not an image's extension", sum(ignored.extensions.values()), _counts(ignored.extensions)),
        ("files passed over: hidden", ignored.hidden, ""),
    ]


def _table(rows: list[tuple[object, ...]], headers: tuple[str, ...]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".1f")


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _counts(counts: Mapping[str, int]) -> str:
    """What there is, the most frequent first; the number where there is more than one kind."""
    if len(counts) == 1:
        return next(iter(counts))
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in ordered)
