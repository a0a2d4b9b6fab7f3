"""Small images in memory: decoded once, and then handed over a batch at a time, on the device and without workers.

Each image's draws are those that the worker processes make, by its address; so are its bytes.

B batch, C channels, H W pixels, K words an image.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from distillery.data.arrow import ArrowImages
from distillery.data.augment.operations import Words
from distillery.data.loader import Batch, SecondView, batch_of
from distillery.data.orders import Ids
from distillery.data.samplers import GlobalBatches, Sample
from distillery.data.transforms import Transform, eval_transform
from distillery.experiment.schema.recipe import Preprocess
from distillery.randomness import address_keys, twister_words

# What the squares of one split may take of a process's memory, or of a GPU's, where nobody has chosen.
MOST_BYTES = 2 * 2**30

# Draws are made for so many samples at once: few enough for a processor's cache, many enough to cost nothing.
_DRAWN_TOGETHER = 4096


class Squares:
    """The images of a split as evaluation cuts them, each decoded when it is first asked for.

    They are kept on ``device`` as uint8 (N, 3, size, size).
    """

    def __init__(self, images: ArrowImages, preprocess: Preprocess, device: torch.device) -> None:
        self._images, self._transform = images, eval_transform(preprocess)
        shape = (len(images), 3, preprocess.size, preprocess.size)
        self._pixels_NCHW = torch.empty(shape, dtype=torch.uint8, device=device)
        self._is_there = np.zeros(len(images), dtype=bool)

    def take(self, ids: Ids) -> Tensor:
        """A copy of some squares, (B, 3, size, size)."""
        missing = np.unique(ids[~self._is_there[ids]])
        if missing.size:
            decoded = [self._transform.decode(self._images.encoded(index)) for index in missing.tolist()]
            self._pixels_NCHW[torch.from_numpy(missing).to(self._pixels_NCHW.device)] = torch.stack(decoded).to(
                self._pixels_NCHW.device
            )
            self._is_there[missing] = True
        return self._pixels_NCHW.index_select(0, torch.from_numpy(ids).to(self._pixels_NCHW.device))


def fits(images: ArrowImages, preprocess: Preprocess, device: torch.device) -> bool:
    """Whether all squares of the images are few and small enough to be kept without being asked."""
    size = len(images) * 3 * preprocess.size**2
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else MOST_BYTES
    return size <= min(room, MOST_BYTES)


def squares_of(images: ArrowImages, preprocess: Preprocess, device: torch.device) -> Squares:
    """The squares of the images, the same ones for everybody who asks for equal squares on this device."""
    key = (preprocess.pixels, str(device))
    if key not in images.squares:
        images.squares[key] = Squares(images, preprocess, device)
    squares: Squares = images.squares[key]
    return squares


class MemoryTraining:
    """Augmented batches of ``batches``; each iteration goes where ``batches.start`` has put it.

    As ``loader.train_loader``, from squares; those of ``teacher`` and of ``further`` ones come with their own squares.
    """

    def __init__(
        self,
        images: ArrowImages,
        transform: Transform,
        batches: GlobalBatches,
        seed: int,
        squares: Squares,
        view: SecondView | None = None,
        teacher: tuple[Transform, Squares] | None = None,
        further: Sequence[tuple[Transform, Squares]] = (),
    ) -> None:
        self._images, self._batches, self._seed = images, batches, seed
        self._student, self._view, self._teacher, self._further = (transform, squares), view, teacher, further
        self._drawing = [("augment", transform), *([("augment-view", view.transform)] if view else [])]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for lists in _together(self._batches):
            samples = [sample for one in lists for sample in one]
            drawn = [
                twister_words(address_keys(self._seed, stream, samples), transform.words)
                for stream, transform in self._drawing
            ]
            begin = 0
            for one in lists:
                end = begin + len(one)
                yield self._batch(one, [words_BK[begin:end] for words_BK in drawn])
                begin = end

    def _batch(self, samples: Sequence[Sample], drawn: Sequence[Words]) -> Batch:
        ids = np.array([sample.index for sample in samples], dtype=np.int64)
        transform, squares = self._student
        batch = batch_of(self._images, ids, transform.finish_many(squares.take(ids), drawn[0]))
        if self._teacher is not None:
            transform, own = self._teacher
            batch = batch._replace(teacher_images=transform.finish_many(own.take(ids), drawn[0]))
        shown_further = [prepared.finish_many(own.take(ids), drawn[0]) for prepared, own in self._further]
        batch = batch._replace(further_images=tuple(shown_further) or None)
        if self._view is None:
            return batch
        partner = self._view.partner
        shown = ids if partner is None else np.array([partner(*sample) for sample in samples], dtype=np.int64)
        batch = batch._replace(view=self._view.transform.finish_many(squares.take(shown), drawn[1]))
        if self._teacher is not None and self._view.teacher is not None:
            batch = batch._replace(teacher_view=self._view.teacher.finish_many(own.take(shown), drawn[1]))
        return batch


def _together(batches: GlobalBatches) -> Iterator[list[list[Sample]]]:
    """Several lists of samples at a time."""
    lists: list[list[Sample]] = []
    waiting = 0
    for samples in batches:
        lists.append(samples)
        waiting += len(samples)
        if waiting >= _DRAWN_TOGETHER:
            yield lists
            lists, waiting = [], 0
    if lists:
        yield lists


class MemoryEvaluation:
    """Squares in given batches, as ``loader.eval_loader`` has them."""

    def __init__(self, images: ArrowImages, squares: Squares, parts: Sequence[Ids]) -> None:
        self._images, self._squares, self._parts = images, squares, parts

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        for ids in self._parts:
            yield batch_of(self._images, ids, self._squares.take(ids))
