"""In which order an epoch shows the images: plain shuffling, BAKE's anchors with partners, repeated augmentation.

An order maps an epoch to sample ids; ids may repeat, and the loader gives each repetition its own
augmentation. It describes the whole epoch for all devices together, so the number of devices cannot change it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from distillery.errors import UserError
from distillery.randomness import address_key, addressed_bits, addressed_permutation

Ids = npt.NDArray[np.int64]
Order = Callable[[int], Ids]


def shuffled_order(images: int, seed: int, stream: str = "order") -> Order:
    """Every image once an epoch, shuffled."""
    return lambda epoch: addressed_permutation(images, seed, stream, epoch)


def repeated_order(images: int, seed: int, repeats: int, multiple: int = 256) -> Order:
    """Repeated augmentation: each image ``repeats`` times in a row, the epoch cut to about ``images`` samples.

    As in timm's RASampler, an epoch is as long as a plain one, rounded down to a multiple of ``multiple``, and so sees
    about one in ``repeats`` of the images. Small data sets, shorter than ``multiple``, are not rounded.
    """
    length = repeated_length(images, multiple)
    return lambda epoch: np.repeat(addressed_permutation(images, seed, "order", epoch), repeats)[:length]


def repeated_length(images: int, multiple: int = 256) -> int:
    """How many samples an epoch of repeated augmentation has."""
    return images // multiple * multiple or images


def cycled_order(order: Order, length: int) -> Order:
    """An order gone through again and again, each time as another epoch, until an epoch is ``length`` long."""
    rounds = -(-length // len(order(0)))
    return lambda epoch: np.concatenate([order(epoch * rounds + turn) for turn in range(rounds)])[:length]


def labelled_part(batch: int, share: float) -> int:
    """How many images of a batch have labels: its share, and at least one."""
    return max(1, round(share * batch))


def mixed_order(labelled: Ids, unlabelled: Ids, seed: int, batch: int, share: float) -> Order:
    """Batches of images with and without labels: ``labelled_part`` of each batch, evenly spread over it, are labelled.

    Both kinds are gone through again and again, each by itself. An epoch is as long as a plain one.
    """
    images = len(labelled) + len(unlabelled)
    is_labelled = np.zeros(images, dtype=bool)
    for begin in range(0, images, batch):
        size = min(batch, images - begin)
        count = labelled_part(size, share)
        is_labelled[begin + np.arange(count) * size // count] = True
    wanted = int(is_labelled.sum())
    known = cycled_order(shuffled_order(len(labelled), seed, "order-labelled"), wanted)
    others = cycled_order(shuffled_order(len(unlabelled), seed), images - wanted) if wanted < images else None

    def order(epoch: int) -> Ids:
        ids = np.empty(images, dtype=np.int64)
        ids[is_labelled] = labelled[known(epoch)]
        if others is not None:
            ids[~is_labelled] = unlabelled[others(epoch)]
        return ids

    return order


def flow_sample(images: int, seed: int, epoch: int, limit: int) -> Ids:
    """The images that MGD's channel statistics are taken from before an epoch: at most ``limit``, shuffled."""
    return addressed_permutation(images, seed, "flow", epoch)[:limit]


def partner_order(labels: Ids, seed: int, partners: int) -> Order:
    """BAKE's order: every image once as an anchor, each anchor followed by ``partners`` other images of its class.

    Partners are drawn uniformly without replacement where the class is large enough, with replacement where it is not;
    an image alone in its class is its own partner, under another augmentation. Anchor and partners stand together, so a
    batch that is a multiple of ``partners + 1`` never parts them, on any number of devices. (The reference small-scale
    sampler lists a batch's anchors first; within a batch the order changes nothing.)
    """
    if partners < 1:
        raise UserError(f"partners: {partners} is not valid; give 1 or more")
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    place = np.empty_like(by_class)
    place[by_class] = np.arange(len(labels)) - starts[labels[by_class]]
    # An epoch reads these in random order: the narrower they are, the more of them a processor's cache holds.
    narrow = np.min_scalar_type(len(labels))
    by_class, place, classes = by_class.astype(narrow), place.astype(narrow), labels.astype(narrow)

    def order(epoch: int) -> Ids:
        anchors = addressed_permutation(len(labels), seed, "order", epoch)
        bits = addressed_bits(len(labels) * partners, seed, "partners", epoch).reshape(len(labels), partners)
        own = classes[anchors]
        others = sizes[own] - 1
        picks = _distinct_picks(bits, others)
        # Places at or after the anchor's own move up by one, which skips the anchor.
        picks += picks >= place[anchors][:, None]
        picks[others == 0] = 0
        picks += starts[own][:, None]
        return np.concatenate([anchors[:, None], by_class[picks]], axis=1).reshape(-1)

    return order


class ClassPartners:
    """CS-KD's partners: for each sample any image of its class, by chance itself.

    ``labels`` may hide some, all by one number.
    """

    def __init__(self, labels: Ids, seed: int) -> None:
        self._by_class, self._seed = np.argsort(labels, kind="stable"), seed
        _, self._class_of, self._sizes = np.unique(labels, return_inverse=True, return_counts=True)
        self._starts = np.cumsum(self._sizes) - self._sizes

    def __call__(self, epoch: int, index: int, copy: int) -> int:
        """The partner of a sample, a function of its address."""
        own = self._class_of[index]
        place = address_key(self._seed, "partner", epoch, index, copy) % int(self._sizes[own])
        return int(self._by_class[self._starts[own] + place])


def _distinct_picks(bits: npt.NDArray[np.uint64], counts: Ids) -> Ids:
    """Per row, uniform picks from ``range(counts[row])``, all distinct where there are enough; shape as ``bits``."""
    rows, wanted = bits.shape
    enough = counts >= wanted
    picks = np.empty((rows, wanted), dtype=np.int64)
    for column in range(wanted):
        pick = _scaled(bits[:, column], np.maximum(counts - column * enough, 1))
        # The pick counts only numbers not taken yet: step over the taken ones in ascending order.
        for taken in np.sort(picks[:, :column], axis=1).T:
            pick += enough & (pick >= taken)
        picks[:, column] = pick
    return picks


def _scaled(words: npt.NDArray[np.uint64], below: Ids) -> Ids:
    """Map random words to integers in [0, below) by the high half of a 32 x 32 bit product."""
    high = words >> np.uint64(32)
    high *= below.view(np.uint64)
    high >>= np.uint64(32)
    return high.view(np.int64)
