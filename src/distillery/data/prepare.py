"""From raw images, as they were published, to Arrow shards and a manifest."""

import shutil
import sys
from itertools import count
from pathlib import Path

from distillery.atomic import write_text
from distillery.data import shards
from distillery.data.decode import DEEP_MODES
from distillery.data.describe import WrittenShard, describe
from distillery.data.fetch import fetch_raw
from distillery.data.generated import generate_images
from distillery.data.holdout import hold_out
from distillery.data.layouts import find_images
from distillery.data.manifest import FILE_NAME, Manifest
from distillery.data.parallel import Progress, write_shards
from distillery.data.raw import RawFile, counted, shown
from distillery.data.shards import ShardFacts, ShardTask, split_into_shards
from distillery.data.sources import RawImages
from distillery.data.staging import staged_folder
from distillery.data.unlabelled import add_unlabelled
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset
from distillery.results import write_sealed

# What was planned for each shard, and what came of it, by split.
Outcome = dict[str, list[tuple[ShardTask, ShardFacts]]]


def prepare_dataset(name: str, dataset: Dataset, output: Path, workers: int) -> Manifest:
    """Turn a data set's raw images into shards and a manifest in the folder ``output``, which appears whole.

    The same images give the same bytes, from a folder or a tar, with any number of ``workers`` (processes). Raw files
    are kept as they are; each is decoded once, to check it. An older ``output`` is replaced.

    Raises:
        UserError: the raw images are missing or not laid out as classes; some cannot be decoded (all of them are then
            listed in ``<output>.corrupt.txt``) and the data set does not say `on_corrupt: skip`; or ``output`` cannot
            be written or holds something else.
    """
    if dataset.generated is None:
        fetch_raw(name, dataset)
    _refuse_strange(output)
    with staged_folder(output) as staging:
        scratch = staging / "raw"
        scratch.mkdir()
        if dataset.generated is None:
            print(f"{name}: looking through {dataset.path}", file=sys.stderr, flush=True)
            images = find_images(name, dataset, scratch)
        else:
            images = generate_images(Path(dataset.path), dataset.generated)
        if dataset.holdout is not None:
            images = hold_out(images, dataset.holdout, name)
        if dataset.unlabelled is not None:
            images = add_unlabelled(images, dataset, scratch)
        if not dataset.embed:
            _check_places(dataset, images, scratch)
        outcome = _write(name, images, staging, workers, dataset)
        shutil.rmtree(scratch)
        faults = [fault for shards_of in outcome.values() for _, facts in shards_of for fault in facts.faults]
        _check_faults(name, dataset, output, faults, sum(map(len, images.splits.values())))
        _check_classes(dataset, images, outcome)
        manifest = describe(name, images, _give_names(outcome), faults)
        write_sealed(staging / FILE_NAME, manifest.model_dump(mode="json"))
    for line in summary(manifest, output):
        print(line, file=sys.stderr)
    return manifest


def summary(manifest: Manifest, folder: Path) -> list[str]:
    """What a person should know about a prepared data set, a line each."""
    train, val, name = manifest.splits.get("train"), manifest.splits["val"], manifest.name
    training = "" if train is None else f"{train.images:,} training and "
    lines = [
        f"{name}: {counted(len(manifest.classes), 'class', 'classes')}, "
        f"{training}{counted(val.images, 'validation image')} in {folder}"
    ]
    if "unlabelled" in manifest.splits:
        lines.append(f"{name}: {counted(manifest.splits['unlabelled'].images, 'image')} without labels beside them")
    if "holdout" in manifest.splits:
        lines.append(
            f"{name}: {counted(manifest.splits['holdout'].images, 'image')} held out from training, to choose epochs by"
        )
    pairs = manifest.duplicates.across_splits
    if pairs:
        lines.append(
            f"{name}: warning: {_are(len(pairs), 'validation image')} also among the training images, e.g. "
            f"{shown(pairs[0][1])} and {shown(pairs[0][0])}"
        )
    contradicting = manifest.duplicates.contradicting
    if contradicting:
        lines.append(
            f"{name}: warning: {_are(len(contradicting), 'image')} there again under another label, e.g. "
            f"{' and '.join(map(shown, contradicting[0]))} (all are in {folder / FILE_NAME}); at most one can be right"
        )
    if len(manifest.classes) == 1:
        lines.append(f"{name}: warning: there is one class only, so that any network is always right")
    if manifest.skipped:
        lines.append(f"{name}: warning: {counted(len(manifest.skipped), 'image')} cannot be decoded and left out")
    photographs = manifest.ignored.photographs
    if photographs:
        places = ", ".join(f"{shown(place)}: {number:,}" for place, number in list(photographs.items())[:5])
        more = ", ..." if len(photographs) > 5 else ""
        lines.append(
            f"{name}: warning: {counted(sum(photographs.values()), 'photograph')} of a kind that cannot be read left "
            f"out ({places}{more}); convert to JPEG or PNG"
        )
    turned = sum(split.turned for split in manifest.splits.values())
    if turned:
        lines.append(
            f"{name}: warning: {_are(turned, 'image')} stored on the side or mirrored, by the EXIF orientation, and "
            f"used so; `orientation: exif` of {name!r} in datasets.yaml turns them"
        )
    modes = [item for split in manifest.splits.values() for item in split.modes.items()]
    deep = sum(number for mode, number in modes if mode in DEEP_MODES)
    if deep:
        lines.append(
            f"{name}: warning: {counted(deep, 'image')} with more than 8 bits a channel: values above 255 become "
            "white; scale them to 8 bits first, as `mogrify -depth 8` of ImageMagick does"
        )
    ignored = {name or "without extension": number for name, number in manifest.ignored.extensions.items()}
    ignored |= {"hidden": manifest.ignored.hidden} if manifest.ignored.hidden else {}
    if ignored:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in ignored.items())
        lines.append(f"{name}: passed over as no images: {counted(sum(ignored.values()), 'file')} ({kinds})")
    return lines


def _are(number: int, thing: str) -> str:
    return f"{counted(number, thing)} {'is' if number == 1 else 'are'}"


def _refuse_strange(output: Path) -> None:
    """A folder with anything but an older data set in it is not ours to replace."""
    if not output.is_dir():
        if output.exists():
            raise UserError(f"{output}: is a file, but the prepared data set goes there; move it away")
        return
    for path in sorted(output.iterdir()):
        if not (path.suffix == ".arrow" or path.name == FILE_NAME or path.name.startswith(".")):
            raise UserError(f"{output}: holds {path.name}, which is no part of a prepared data set; move it away")


def _check_places(dataset: Dataset, images: RawImages, scratch: Path) -> None:
    """Images that are not embedded must lie where they can be read again, as they are."""
    if dataset.orientation == "exif":
        raise UserError(f"{dataset.path}: `orientation: exif` stores images anew, which `embed: false` forbids")
    for image in (image for split in images.splits.values() for image in split):
        file = image.file
        if not isinstance(file, RawFile) or file.packed is not None or scratch in file.source.parents:
            raise UserError(
                f"{dataset.path}: {shown(image.path)} lies in no plain file, folder or tar that `embed: false` could "
                "point to; unpack the archive, or remove `embed: false`"
            )


def _write(name: str, images: RawImages, staging: Path, workers: int, dataset: Dataset) -> Outcome:
    number, turn = count(), dataset.orientation == "exif"
    planned = {
        split: [
            ShardTask(part, images.classes, staging / f"{next(number)}.shard", dataset.embed, turn)
            for part in split_into_shards(split_images)
        ]
        for split, split_images in images.splits.items()
    }
    total = sum(map(len, images.splits.values()))
    # Starting a process takes as long as reading some thousand small images, or some tens of megabytes of large ones.
    size = sum(image.file.size for split in images.splits.values() for image in split)
    processes = min(workers, next(number), max(total // (2 * shards.IMAGES_PER_SHARD), size // 2**25))
    progress = Progress(name, total)
    try:
        found = iter(write_shards([task for tasks in planned.values() for task in tasks], processes, progress))
    finally:
        progress.close()
    return {split: [(task, next(found)) for task in tasks] for split, tasks in planned.items()}


def _check_faults(name: str, dataset: Dataset, output: Path, faults: list[tuple[str, str]], total: int) -> None:
    """Stop for images that cannot be decoded, with all of them listed in a file beside the output."""
    listing = output.with_name(f"{output.name}.corrupt.txt")
    if not faults or dataset.on_corrupt == "skip":
        listing.unlink(missing_ok=True)
        return
    write_text(listing, "".join(f"{shown(path)}\t{reason}\n" for path, reason in faults))
    first = "; ".join(f"{shown(path)}: {reason}" for path, reason in faults[:3])
    raise UserError(
        f"{dataset.path}: {len(faults):,} of {counted(total, 'image')} cannot be decoded: {first}"
        f"{'; ...' if len(faults) > 3 else ''} (all are listed in {listing}); mend or remove them, "
        f"or set `on_corrupt: skip` for {name!r} in datasets.yaml"
    )


def _check_classes(dataset: Dataset, images: RawImages, outcome: Outcome) -> None:
    """Skipping must not empty a class."""
    for split, shards_of in outcome.items():
        left = {task.images[position].label for task, facts in shards_of for position in facts.kept}
        for label in sorted({image.label for image in images.splits[split]} - left):
            folder = f"{images.folders[split]}/{shown(images.classes[label])}/"
            raise UserError(f"{dataset.path}: {folder}: none of its images can be decoded; a class needs some")


def _give_names(outcome: Outcome) -> dict[str, list[WrittenShard]]:
    """Number the shards that hold images."""
    named: dict[str, list[WrittenShard]] = {}
    for split, shards_of in outcome.items():
        filled = [(task, facts) for task, facts in shards_of if facts.kept]
        named[split] = []
        for position, (task, facts) in enumerate(filled):
            file = f"{split}-{position:05d}-of-{len(filled):05d}.arrow"
            task.target.rename(task.target.with_name(file))
            named[split].append(WrittenShard(file, task.images, facts))
    return named
