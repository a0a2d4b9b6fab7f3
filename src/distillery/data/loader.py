"""From prepared images to batches, the same ones with any number of worker processes.

Images leave the loader as uint8 and go to the device as such; the networks' own normalisation happens there.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distillery.cluster.signals import obey_parent_only, warnings_blocked
from distillery.data.arrow import HIDDEN, ArrowImages
from distillery.data.augment.lighting import add_shifts
from distillery.data.decoded import DecodedImages
from distillery.data.orders import ClassPartners, Ids
from distillery.data.samplers import GlobalBatches, Sample
from distillery.data.transforms import Transform
from distillery.errors import UserError
from distillery.paths import SHARED_MEMORY
from distillery.randomness import address_key

# After so long, and every time again, a wait for data is said.
WAIT_SECONDS = 60.0


class Batch(NamedTuple):
    """Images uint8 (B, 3, H, W), labels long (B,), the images' sample ids long (B,).

    ``shifts``, float32 (B, 3), are what lighting adds to red, green and blue; they are added on the device, where the
    images become floats. ``view`` holds a second augmentation of the images, or of others of their classes, where one
    was asked for. Where some labels are hidden, ``labelled``, long (L,), has the rows of the others. ``teacher_images``
    and ``teacher_view`` are both as the teacher sees them, where it sees other squares; ``further_images`` are those of
    further teachers.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    shifts: Tensor | None = None
    view: Tensor | None = None
    view_shifts: Tensor | None = None
    labelled: Tensor | None = None
    teacher_images: Tensor | None = None
    teacher_view: Tensor | None = None
    further_images: tuple[Tensor, ...] | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Copy the batch to a device, and light its images there."""
        moved = [None if part is None else part.to(device, non_blocking=non_blocking) for part in self[:-1]]
        further = [part.to(device, non_blocking=non_blocking) for part in self.further_images or ()]
        images, labels, indices, shifts, view, view_shifts, labelled, teacher_images, teacher_view = moved
        assert labels is not None
        assert indices is not None
        lit = _lit(images, shifts)
        assert lit is not None
        return Batch(
            lit,
            labels,
            indices,
            view=_lit(view, view_shifts),
            labelled=labelled,
            teacher_images=_lit(teacher_images, shifts),
            teacher_view=_lit(teacher_view, view_shifts),
            further_images=tuple(part if shifts is None else add_shifts(part, shifts) for part in further) or None,
        )


def _lit(images: Tensor | None, shifts: Tensor | None) -> Tensor | None:
    return images if images is None or shifts is None else add_shifts(images, shifts)


def train_loader(
    images: ArrowImages,
    transform: Transform,
    batches: GlobalBatches,
    seed: int,
    workers: int,
    pin_memory: bool,
    view: "SecondView | None" = None,
    teacher: Transform | None = None,
    further: Sequence[Transform] = (),
    cache: Path | None = None,
) -> "DataLoader[Batch]":
    """Load this rank's part of each batch of ``batches``, augmented, once or twice.

    Before a sample is augmented, the generators are seeded from its address (seed, "augment", epoch, index, copy), so
    neither workers nor restarts can change it; for a second view, from (seed, "augment-view", ...), so that it does not
    change the first. ``teacher`` prepares the same samples once more, from the same addresses, for a teacher that sees
    other squares, and so do ``further`` ones. The process's own generators are left as they were. Decoded images are
    kept below ``cache``.
    """
    for prepared in (transform, teacher, *further, view and view.transform, view and view.teacher):
        if prepared is not None:
            _import_for(images, prepared)
    decoded = None if cache is None else DecodedImages(images, cache)
    dataset = TrainImages(images, transform, seed, view, teacher, further, decoded)
    return _loader(dataset, batches, workers, pin_memory, persistent=True)


def eval_loader(
    images: ArrowImages,
    transform: Transform,
    batch: int,
    workers: int,
    world_size: int,
    rank: int,
    pin_memory: bool,
    indices: Ids | None = None,
    persistent: bool = False,
) -> "DataLoader[Batch]":
    """Load this rank's share of the images in order: each image once over all ranks, none repeated to pad.

    ``indices`` names the images and their order; all of the split by default. ``persistent`` keeps the workers for the
    next time that the loader is gone through.
    """
    parts = [part.tolist() for part in eval_parts(len(images), batch, world_size, rank, indices)]
    _import_for(images, transform)
    return _loader(EvalImages(images, transform), parts, workers, pin_memory, persistent)


def eval_parts(images: int, batch: int, world_size: int, rank: int, indices: Ids | None = None) -> list[Ids]:
    """The sample ids of each batch of ``eval_loader``."""
    chosen = np.arange(images) if indices is None else indices
    low, high = len(chosen) * rank // world_size, len(chosen) * (rank + 1) // world_size
    return [chosen[begin : min(begin + batch, high)] for begin in range(low, high, batch)]


class SecondView(NamedTuple):
    """How each sample is shown once more.

    ``teacher`` prepares it for a teacher that sees other squares. ``partner`` says which image stands in for the
    sample's own; None for none.
    """

    transform: Transform
    teacher: Transform | None = None
    partner: ClassPartners | None = None


class TrainImages(Dataset[Batch]):
    """Augmented batches by their samples' addresses."""

    def __init__(
        self,
        images: ArrowImages,
        transform: Transform,
        seed: int,
        view: SecondView | None = None,
        teacher: Transform | None = None,
        further: Sequence[Transform] = (),
        decoded: DecodedImages | None = None,
    ) -> None:
        self._images, self._transform, self._seed = images, transform, seed
        self._view, self._teacher, self._further, self._decoded = view, teacher, further, decoded

    def __getstate__(self) -> dict[str, Any]:
        # Workers that are not forked cannot share what is decoded.
        return {**vars(self), "_decoded": None}

    def __getitem__(self, samples: Sequence[Sample]) -> Batch:
        with generators_kept():
            batch = self._assembled(samples, "augment", self._transform)
            if self._teacher is not None:
                batch = batch._replace(teacher_images=self._assembled(samples, "augment", self._teacher).images)
            if self._further:
                others = [self._assembled(samples, "augment", prepared).images for prepared in self._further]
                batch = batch._replace(further_images=tuple(others))
            if self._view is not None:
                partner = self._view.partner
                second = self._assembled(samples, "augment-view", self._view.transform, partner)
                batch = batch._replace(view=second.images, view_shifts=second.shifts)
                if self._view.teacher is not None:
                    second = self._assembled(samples, "augment-view", self._view.teacher, partner)
                    batch = batch._replace(teacher_view=second.images)
        return batch

    def _assembled(
        self,
        samples: Sequence[Sample],
        stream: str,
        transform: Transform,
        partner: ClassPartners | None = None,
    ) -> Batch:
        shown = [sample.index if partner is None else partner(*sample) for sample in samples]
        if transform.plannable and (self._decoded is None or transform.crop.reduced_decoding):
            loaded = self._planned(samples, stream, transform, shown)
        else:
            loaded = []
            for sample, index in zip(samples, shown, strict=True):
                seed_sample(self._seed, sample, stream)
                loaded.append((self._square(index, transform), transform.draw_shift()))
        return assemble(self._images, [sample.index for sample in samples], loaded)

    def _planned(
        self, samples: Sequence[Sample], stream: str, transform: Transform, shown: Sequence[int]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Squares and shifts. All is drawn before the first image is decoded: right after one, draws take five times
        as long, because what they need is no longer in the processor's caches.
        """
        encoded, plans = [self._images.encoded(index) for index in shown], []
        for sample, content in zip(samples, encoded, strict=True):
            seed_sample(self._seed, sample, stream)
            plans.append(transform.plan(content))
        return [
            (transform.decode_planned(content, plan), plan.shift) for content, plan in zip(encoded, plans, strict=True)
        ]

    def _square(self, index: int, transform: Transform) -> Tensor:
        if self._decoded is None or transform.crop.reduced_decoding:
            return transform.decode(self._images.encoded(index))
        return transform(self._decoded.take(index))


class EvalImages(Dataset[Batch]):
    """Batches by sample ids."""

    def __init__(self, images: ArrowImages, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, indices: Sequence[int]) -> Batch:
        loaded = [(self._transform.decode(self._images.encoded(index)), None) for index in indices]
        return assemble(self._images, indices, loaded)


def seed_sample(seed: int, sample: Sample, stream: str = "augment") -> None:
    """Seed the CPU's generators by a sample's address, right before its augmentation draws from them.

    As ``randomness.seed_generators``, less the GPUs' generators, which would take most of a sample's time.
    """
    key = address_key(seed, stream, *sample)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)


def assemble(images: ArrowImages, indices: Sequence[int], loaded: Sequence[tuple[Tensor, Tensor | None]]) -> Batch:
    """Make a batch of squares (3, size, size) and their shifts; the squares say on which device the images are."""
    shifts = [shift for _, shift in loaded if shift is not None]
    ids = np.asarray(indices, dtype=np.int64)
    squares_B3HW = _joined([square for square, _ in loaded])
    return batch_of(images, ids, squares_B3HW, torch.stack(shifts) if shifts else None)


def _joined(squares: Sequence[Tensor]) -> Tensor:
    """Squares (3, H, W) as one batch with the channels innermost in memory, as images are decoded: copied as they lie.

    In a worker, the batch begins its life in shared memory, so that nothing is copied twice.
    """
    first_HW3 = squares[0].permute(1, 2, 0)
    shape = (len(squares), *first_HW3.shape)
    if get_worker_info() is None:
        batch_BHW3 = first_HW3.new_empty(shape)
    else:
        with _room_for(len(squares) * first_HW3.numel()):
            shared = torch.UntypedStorage._new_shared(len(squares) * first_HW3.numel())  # type: ignore[no-untyped-call]
        batch_BHW3 = first_HW3.new_empty(0).set_(shared).view(shape)
    torch.stack([square.permute(1, 2, 0) for square in squares], out=batch_BHW3)
    return batch_BHW3.permute(0, 3, 1, 2)


def batch_of(images: ArrowImages, ids: Ids, squares_B3HW: Tensor, shifts_B3: Tensor | None = None) -> Batch:
    """Add to squares what is known of their images."""
    labels = torch.from_numpy(images.labels[ids])
    known = labels != HIDDEN
    labelled = None if known.all() else known.nonzero()[:, 0]
    return Batch(squares_B3HW, labels, torch.from_numpy(ids), shifts_B3, labelled=labelled)


def _import_for(images: ArrowImages, transform: Transform) -> None:
    """Prepare one image, so that what this imports (Pillow's readers, a decoder) is there for all workers."""
    with generators_kept(), suppress(UserError):
        transform.decode(images.encoded(0))


def _loader(
    dataset: Dataset[Batch], batches: GlobalBatches | list[list[int]], workers: int, pin_memory: bool, persistent: bool
) -> "DataLoader[Batch]":
    """A DataLoader whose every item is a whole batch: nothing is collated twice."""
    return _Loader(
        dataset,
        sampler=batches,
        batch_size=None,
        collate_fn=_whole,  # type: ignore[arg-type]  # declared for lists of samples
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=obey_parent_only,
        # Without a generator of its own, the loader would draw from the process's.
        generator=torch.Generator(),
    )


class _Loader(DataLoader[Batch]):
    """A DataLoader whose workers no signal kills but their parent's, from their birth on."""

    def __iter__(self) -> Any:  # noqa: ANN401  # torch names its class of iterators nowhere
        with warnings_blocked():
            batches = super().__iter__()
        return _errors_in_one_line(batches) if self.num_workers else batches


def _errors_in_one_line(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Hand on batches of workers; what the system did to a worker is said as it would be without one.

    torch puts a worker's traceback before its words. And it says that a worker has ended, unless a batch's memory is
    asked of that worker before the kernel has counted it among the dead.
    """
    try:
        yield from batches
    except (OSError, EOFError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if " in DataLoader worker process " in lines[0]:
            raise OSError(lines[-1].partition(": ")[2] or lines[-1]) from error
        if isinstance(error, ConnectionError | EOFError | FileNotFoundError):
            raise RuntimeError(f"DataLoader worker is gone: {lines[-1]}") from error
        raise


def said_every_minute() -> "_Waits":
    """Say every minute how long has been waited in here."""
    return _waits


class _Waits:
    """A thread that looks every few seconds whether somebody still waits for data.

    Entered in each step: a class, for a generator takes longer.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.said = 0
        self.process = 0

    def __enter__(self) -> None:
        self.since, self.said = time.monotonic(), 0
        if self.process != os.getpid():
            self.process = os.getpid()
            threading.Thread(target=self._watch, daemon=True).start()

    def __exit__(self, *error: object) -> None:
        self.since = None

    def _watch(self) -> None:
        while True:
            time.sleep(WAIT_SECONDS / 12)
            since = self.since
            waited = 0.0 if since is None else time.monotonic() - since
            if waited >= WAIT_SECONDS * (self.said + 1):
                self.said += 1
                print(
                    f"distillery: waiting for images for {waited:.0f} s; is their disk mounted, or a worker stopped?",
                    file=sys.stderr,
                    flush=True,
                )


_waits = _Waits()


def _whole(batch: Batch) -> Batch:
    """Hand a batch on; in a worker, through shared memory, here and not in a thread where its lack would be silent."""
    if get_worker_info() is None:
        return batch
    small: dict[str, Any] = {name: _ByValue(part) for name in _SMALL if (part := getattr(batch, name)) is not None}
    images = (batch.images, batch.view, batch.teacher_images, batch.teacher_view, *(batch.further_images or ()))
    parts = [part for part in images if part is not None]
    with _room_for(sum(part.numel() * part.element_size() for part in parts)):
        for part in parts:
            part.share_memory_()  # type: ignore[no-untyped-call]
    return batch._replace(**small)


# What is a number or a few for each image.
_SMALL = ("labels", "indices", "shifts", "view_shifts", "labelled")


class _ByValue:
    """A tensor that is sent as its bytes, and is a tensor where it arrives: sharing a few bytes takes longer."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.from_numpy, (self._tensor.numpy(),)


@contextmanager
def _room_for(size: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            f"{SHARED_MEMORY} has no room for a batch of {size / 2**20:.1f} MB ({str(error).splitlines()[0]}); use "
            "fewer --workers, or give a container more by --shm-size"
        ) from None


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the process's generators as they were; a worker's need not be kept."""
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
