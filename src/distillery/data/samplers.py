"""Which images a process loads next: an epoch's order, cut into global batches, micro-batches and ranks."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from distillery.data.orders import Ids, Order
from distillery.errors import UserError


class Sample(NamedTuple):
    """One use of an image: the address of its augmentation. With ``crops``, the epoch is the view's number, copy 0."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which is never called on it
    copy: int  # how often the image came before in this epoch


class GlobalBatches(Sampler[list[Sample]]):
    """A rank's part of every global batch of an epoch, one list of samples a micro-batch.

    Global batch b is ``order(epoch)[b * batch : (b + 1) * batch]``. It is split contiguously into ``accumulation``
    micro-batches and each of them contiguously over ``world_size`` ranks, so all ranks and micro-batches together see
    the same images for any number of either. An iteration goes from where ``start`` has put it to the end of that
    epoch.

    With ``paired``, the first image of a global batch and the last, the second and the last but one, and so on, stay
    together: a part is a slice of the first half and its mirror image in the second.

    With ``crops``, images are augmented in so many ways alone: each use of one is its view (epoch + copy) % crops.

    ``order`` gives the ``images`` sample ids of an epoch, which may repeat. ``drop_last`` leaves out its last, smaller
    batch.

    Raises:
        UserError: a batch, or the last one, has fewer images, or pairs, than ranks times micro-batches.
    """

    def __init__(
        self,
        order: Order,
        images: int,
        batch: int,
        *,
        world_size: int = 1,
        rank: int = 0,
        accumulation: int = 1,
        drop_last: bool = True,
        crops: int | None = None,
        paired: bool = False,
    ) -> None:
        assert not paired or (batch % 2 == 0 and drop_last)
        assert 0 <= rank < world_size
        assert batch > 0
        assert accumulation > 0
        self._order, self._images, self._batch = order, images, batch
        self._world_size, self._rank, self._accumulation = world_size, rank, accumulation
        self._epoch = self._first_step = 0
        self._crops = crops
        self._unit = 2 if paired else 1
        self.steps = images // batch if drop_last else -(-images // batch)
        parts = world_size * accumulation
        if batch < parts * self._unit:
            what = "pairs of images to mix" if paired else "images"
            raise UserError(
                f"batch: {batch // self._unit} {what} cannot be split over {world_size} processes x {accumulation} "
                f"micro-batches; use at least {parts * self._unit}"
            )
        last = self.step_images(self.steps - 1) if self.steps else batch
        if last < parts:
            raise UserError(
                f"batch: with {batch}, the last of an epoch's {images} images make a batch of {last}, too few for "
                f"{world_size} processes x {accumulation} micro-batches; set `drop_last: true` or change `batch`"
            )

    @property
    def largest(self) -> int:
        """How many samples the largest list has."""
        return self._unit * -(-self._batch // (self._unit * self._world_size * self._accumulation))

    @property
    def smallest(self) -> int:
        """How many samples the smallest list of an epoch has, on any rank."""
        pairs = self.step_images(self.steps - 1) // self._unit
        return self._unit * (pairs // (self._world_size * self._accumulation))

    def start(self, epoch: int, step: int = 0) -> None:
        """Set where the next iteration begins."""
        assert 0 <= step <= self.steps
        self._epoch, self._first_step = epoch, step

    def step_images(self, step: int) -> int:
        """How many images a step's global batch has."""
        return min(self._batch, self._images - step * self._batch)

    def __len__(self) -> int:
        return (self.steps - self._first_step) * self._accumulation

    def __iter__(self) -> Iterator[list[Sample]]:
        epoch = self._epoch
        order = self._order(epoch)
        assert len(order) == self._images
        copies = copy_numbers(order)
        for step in range(self._first_step, self.steps):
            begin, size = step * self._batch, self.step_images(step)
            for micro in range(self._accumulation):
                low, high = _part(0, size // self._unit, micro, self._accumulation)
                low, high = _part(low, high - low, self._rank, self._world_size)
                places = np.arange(begin + low, begin + high)
                if self._unit == 2:
                    places = np.r_[places, begin + size - high : begin + size - low]
                rows = zip(order[places].tolist(), copies[places].tolist(), strict=True)
                yield [self._address(epoch, index, copy) for index, copy in rows]

    def _address(self, epoch: int, index: int, copy: int) -> Sample:
        return Sample(epoch, index, copy) if self._crops is None else Sample((epoch + copy) % self._crops, index, 0)


def copy_numbers(order: Ids) -> Ids:
    """For each place in an order, how often its id occurred before."""
    by_id = np.argsort(order, kind="stable")
    grouped, places = order[by_id], np.arange(len(order))
    is_first = np.r_[True, grouped[1:] != grouped[:-1]][: len(order)]
    begins = np.maximum.accumulate(np.where(is_first, places, 0))
    copies = np.empty_like(order)
    copies[by_id] = places - begins
    return copies


def _part(begin: int, size: int, number: int, parts: int) -> tuple[int, int]:
    """Bounds of one of several contiguous parts, whose sizes differ by at most one."""
    return begin + size * number // parts, begin + size * (number + 1) // parts
