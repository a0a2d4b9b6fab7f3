"""Which training images have labels that a run may use, where it may use few."""

from pathlib import Path

import numpy as np

from distillery.data.arrow import ArrowImages
from distillery.data.orders import Ids
from distillery.errors import UserError
from distillery.paths import regular
from distillery.randomness import addressed_permutation


def choose_labelled(labels: Ids, count: int, seed: int) -> Ids:
    """Choose images by class, in proportion to the classes' sizes: ascending sample ids, ``(count,)``.

    Every class has one at least where there are as many labels as classes, and no class more than it has images. Which
    ones is fixed by the seed, so that all runs of a seed know the same labels, whatever their objectives.
    """
    assert 0 < count <= len(labels)
    sizes = np.bincount(labels)
    quotas = _quotas(sizes, count)
    chosen = []
    for label in np.flatnonzero(quotas):
        members = np.flatnonzero(labels == label)
        chosen.append(members[addressed_permutation(len(members), seed, "labels", int(label))[: quotas[label]]])
    return np.sort(np.concatenate(chosen))


def listed_images(images: ArrowImages, count: int, path: Path) -> Ids:
    """The images that a list names, a line each: ascending sample ids.

    A line is what the data set calls an image, with or without ``train/``, or its file's name where no other has it.

    Args:
        images: the training images.
        count: how many of them, the first, have labels.
        path: of the list.

    Raises:
        UserError: the list cannot be read or is empty, or a line names no image, or one that was named before.
    """
    try:
        lines = [line.strip() for line in regular(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"labels: {path} cannot be read: {reason}") from None
    places: dict[str, int | None] = {}
    for index in range(count):
        name = images.path(index)
        for key in {name, name.removeprefix("train/"), name.rpartition("/")[2]}:
            places[key] = None if key in places else index
    chosen: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        found = places.get(line)
        if found is None:
            what = "several training images" if line in places else "no training image with a label"
            raise UserError(f"labels: {path}:{number}: {line!r} is {what}; write its path, as {images.path(0)!r}")
        if found in chosen:
            raise UserError(f"labels: {path}:{number}: {line!r} was named before")
        chosen[found] = line
    if not chosen:
        raise UserError(f"labels: {path} is empty; write an image a line, or labels: 0")
    return np.sort(np.fromiter(chosen, dtype=np.int64))


def _quotas(sizes: Ids, count: int) -> Ids:
    """Share out a count by largest remainders; one to each class that has images, if it suffices for all."""
    present = sizes > 0
    least = present.astype(np.int64) if count >= present.sum() else np.zeros_like(sizes)
    exact = count * sizes / sizes.sum()
    quotas: Ids = np.maximum(np.floor(exact).astype(np.int64), least)
    while (missing := count - quotas.sum()) != 0:
        step = 1 if missing > 0 else -1
        # Where one may be given or taken; of these, where it brings the share nearest to the exact one.
        free = quotas < sizes if step > 0 else quotas > least
        wanted = np.where(free, step * (exact - quotas), -np.inf)
        quotas[np.argsort(-wanted, kind="stable")[: min(abs(missing), int(free.sum()))]] += step
    return quotas
