"""Which training images have labels that a run may use, where it may use few."""

import numpy as np

from distillery.data.orders import Ids
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
