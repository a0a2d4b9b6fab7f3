"""How images reach a network: in training by the recipe's operations, in evaluation by its geometry alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from distillery.data.augment.crop import CentreSquare, Crop, CropParams, ResizedCrop, apply_crop
from distillery.data.augment.lighting import draw_shift
from distillery.data.augment.operations import Flip, PaddedCrop, Step, Words, build_step
from distillery.data.decode import REDUCTIONS, decode_rgb, image_size, is_reducible
from distillery.experiment.schema.augmentation import Augmentation, Lighting, RandomResizedCrop
from distillery.experiment.schema.recipe import Preprocess


class Plan(NamedTuple):
    """What was drawn for an image before it is decoded: its crop, its flips, and the lighting's shift, float32 (3,)."""

    params: CropParams
    flips: tuple[tuple[Flip, bool], ...]
    shift: Tensor | None


@dataclass(frozen=True)
class Transform:
    """From an image to the network's square, uint8 (3, size, size).

    The draws come in a fixed order from the global generators of torch, Python and numpy: the crop's, the steps', the
    lighting's. With the same seeds, ``crop.draw`` and then ``finish`` give what ``decode`` gives.
    """

    crop: Crop
    steps: tuple[Step, ...] = ()
    lighting: float | None = None  # deviation of the multiples of the principal axes

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform a decoded image, uint8 (3, H, W)."""
        _, height, width = image_CHW.shape
        return self.finish(apply_crop(image_CHW, self.crop.draw(height, width), self.crop))

    def decode(self, encoded: bytes | memoryview) -> Tensor:
        """Transform an image file's bytes; decodes at a reduced scale where the recipe and the crop allow it."""
        if not self.crop.reduced_decoding or not is_reducible(encoded):
            return self(decode_rgb(encoded))
        return self.finish(self._cut(encoded, self.crop.draw(*image_size(encoded))))

    @cached_property
    def plannable(self) -> bool:
        """Whether a place is drawn for the crop, and beside it only what can be drawn before there are pixels."""
        return isinstance(self.crop, ResizedCrop) and all(isinstance(step, Flip) for step in self.steps)

    def plan(self, encoded: bytes | memoryview) -> "Plan":
        """Draw all that ``decode`` and ``draw_shift`` would, where it is ``plannable``."""
        params = self.crop.draw(*image_size(encoded))
        flips = tuple((step, step.draw()) for step in self.steps if isinstance(step, Flip))
        return Plan(params, flips, self.draw_shift())

    def decode_planned(self, encoded: bytes | memoryview, plan: "Plan") -> Tensor:
        """What ``decode`` gives with the draws of ``plan``."""
        square_CHW = self._cut(encoded, plan.params)
        for flip, mirrored in plan.flips:
            square_CHW = flip.apply(square_CHW, mirrored)
        return square_CHW

    def _cut(self, encoded: bytes | memoryview, params: CropParams) -> Tensor:
        reducible = self.crop.reduced_decoding and is_reducible(encoded)
        reduction = allowed_reduction(params, self.crop.size) if reducible else 1
        image_CHW = decode_rgb(encoded, reduction)
        _, height, width = image_CHW.shape
        return apply_crop(image_CHW, params.reduced(reduction, height, width), self.crop)

    def finish(self, square_CHW: Tensor) -> Tensor:
        """Do the steps that follow once the square is cut."""
        for step in self.steps:
            square_CHW = step(square_CHW)
        return square_CHW

    @cached_property
    def batched(self) -> "tuple[Flip | PaddedCrop, ...] | None":
        """The steps, where these are all that is drawn and each can be done to a whole batch; None elsewhere."""
        steps = tuple(step for step in self.steps if isinstance(step, Flip | PaddedCrop))
        return steps if len(steps) == len(self.steps) and not self.drawn_elsewhere else None

    @property
    def drawn_elsewhere(self) -> bool:
        """Whether the crop or the lighting draws anything."""
        return self.lighting is not None or not isinstance(self.crop, CentreSquare)

    @property
    def words(self) -> int:
        """How many words the ``batched`` steps draw for an image."""
        return sum(step.words for step in self.batched or ())

    def finish_many(self, squares_BCHW: Tensor, words_BK: Words) -> Tensor:
        """Do the ``batched`` steps to squares of a batch's own, each image's with the words that its generator draws.

        Gives what ``finish`` gives for each image. The squares may be overwritten.
        """
        assert self.batched is not None
        begin = 0
        for step in self.batched:
            squares_BCHW = step.many(squares_BCHW, words_BK[:, begin : begin + step.words])
            begin += step.words
        return squares_BCHW

    def draw_shift(self) -> Tensor | None:
        """The lighting's shift of red, green and blue, float32 (3,), to be drawn after all else; None without one."""
        return None if self.lighting is None else draw_shift(self.lighting)


def allowed_reduction(params: CropParams, size: int) -> int:
    """By how much an image may be reduced with its crop still as large as the network's input."""
    return next(factor for factor in REDUCTIONS if min(params.height, params.width) >= factor * size or factor == 1)


def eval_transform(preprocess: Preprocess) -> Transform:
    """How images reach the network when it is measured; never at a reduced scale, so that figures compare."""
    return Transform(CentreSquare(preprocess))


def train_transform(
    preprocess: Preprocess,
    augment: tuple[Augmentation, ...],
    dataset_mean: Sequence[float] = (0.5, 0.5, 0.5),
    viewer: Preprocess | None = None,
) -> Transform:
    """How images reach the network in training: the operations of ``augment`` in the order written.

    A ``random_resized_crop`` works on the whole image. Without one, the evaluation's geometry comes first, and a
    ``random_crop`` moves within its square. ``dataset_mean`` is that of the training images, in [0, 1]: what uncovered
    corners get where ``preprocess`` normalises by it.

    A teacher that is prepared for otherwise is the ``viewer``: with equal draws, its square shows the same part of the
    same image, flipped and coloured alike, at its own size.
    """
    seen = viewer or preprocess
    crop: Crop = CentreSquare(seen)
    steps: list[Step] = []
    lighting = None
    for operation in augment:
        if isinstance(operation, RandomResizedCrop):
            crop = ResizedCrop(operation, seen.size)
        elif isinstance(operation, Lighting):
            lighting = operation.std
        else:
            steps.append(build_step(operation, preprocess, dataset_mean, seen.size))
    return Transform(crop, tuple(steps), lighting)
