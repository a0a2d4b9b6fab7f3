"""Geometry and augmentation of decoded images: uint8 (3, H, W) in, uint8 (3, size, size) out.

The operations are torchvision's v2 transforms, which draw from torch's global generator, and timm's RandAugment, which
draws from Python's and numpy's. The two that small images are trained with, padded crop and flip, are written out: v2's
take twice as long, a good part of a sample's time.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from distillery.config.schema.block import Interpolation
from distillery.config.schema.recipe import (
    Augmentation,
    ColorJitter,
    Grayscale,
    HorizontalFlip,
    Preprocess,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Rotation,
    Statistics,
)
from distillery.errors import UserError

Transform = Callable[[Tensor], Tensor]

# On tensors, "nearest" is an old rounding kept for old models; "nearest-exact" is what Pillow and scikit-image do.
_INTERPOLATIONS: dict[Interpolation, InterpolationMode] = {
    "nearest": InterpolationMode.NEAREST_EXACT,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}


class Chain:
    """Apply transforms one after the other."""

    def __init__(self, steps: Sequence[Transform]) -> None:
        self.steps = tuple(steps)

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        for step in self.steps:
            image_CHW = step(image_CHW)
        return image_CHW


class CentreSquare:
    """Resize the short side to ``resize`` pixels (antialiased), then cut the centre square of ``size``."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.size = preprocess.size
        self.resize = preprocess.resize or preprocess.size
        if self.resize < self.size:
            raise UserError(
                f"preprocess.resize: {self.resize} is smaller than preprocess.size, {self.size}; "
                f"give at least {self.size}"
            )
        self._steps = (
            v2.Resize(self.resize, _INTERPOLATIONS[preprocess.interpolation], antialias=True),
            v2.CenterCrop(self.size),
        )

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        # Small images mostly have the right size; asking first costs a tenth of two transforms that do nothing.
        if self.resize == self.size and image_CHW.shape[1:] == (self.size, self.size):
            return image_CHW
        resize, crop = self._steps
        cropped: Tensor = crop(resize(image_CHW))
        return cropped


class PaddedCrop:
    """Pad each side by ``padding`` pixels (zeros, or reflected), then cut a uniformly placed square of ``size``."""

    def __init__(self, size: int, padding: int, mode: str) -> None:
        self.size, self.padding, self.mode = size, padding, mode

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        if self.padding:
            image_CHW = v2.functional.pad_image(image_CHW, [self.padding], padding_mode=self.mode)
        _, height, width = image_CHW.shape
        top = int(torch.randint(height - self.size + 1, ()))
        left = int(torch.randint(width - self.size + 1, ()))
        return image_CHW[:, top : top + self.size, left : left + self.size]


class Flip:
    """Mirror left and right with probability ``p``."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        return image_CHW.flip(-1) if float(torch.rand(())) < self.p else image_CHW


class PillowRandAugment:
    """timm's RandAugment with the settings of its training pipeline; draws from Python's and numpy's generators.

    Translations reach 45 % of the side. Uncovered corners get the mean that images are normalised by where the recipe
    names it (``imagenet``, or given numbers), and otherwise timm's grey, 128.
    """

    def __init__(self, policy: str, preprocess: Preprocess) -> None:
        from timm.data.auto_augment import rand_augment_transform

        resampling = Image.Resampling[preprocess.interpolation.upper()]
        settings: dict[str, object] = {"translate_const": int(preprocess.size * 0.45), "interpolation": resampling}
        mean = _named_mean(preprocess)
        settings["img_mean"] = (128, 128, 128) if mean is None else tuple(round(255 * value) for value in mean)
        try:
            self._augment = rand_augment_transform(policy, settings)
        except (AssertionError, ValueError):
            raise UserError(
                f"augment.rand_augment.policy: {policy!r} is not valid; join whole numbers m, n, mmax, inc and "
                "decimals p, mstd by dashes, e.g. 'rand-m7-mstd0.5-inc1'"
            ) from None

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        augmented = self._augment(Image.fromarray(image_CHW.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(augmented)).permute(2, 0, 1).contiguous()


def _named_mean(preprocess: Preprocess) -> Sequence[float] | None:
    if isinstance(preprocess.normalize, Statistics):
        return preprocess.normalize.mean
    return (0.485, 0.456, 0.406) if preprocess.normalize == "imagenet" else None


def eval_transform(preprocess: Preprocess) -> Transform:
    """How images reach the network when it is measured.

    Raises:
        UserError: the square to cut is larger than the resized image.
    """
    return CentreSquare(preprocess)


def train_transform(preprocess: Preprocess, augment: tuple[Augmentation, ...]) -> Transform:
    """How images reach the network in training: the operations of ``augment`` in the order written.

    A ``random_resized_crop`` works on the whole image. Without one, the evaluation's geometry comes first, and a
    ``random_crop`` moves within its square.

    Raises:
        UserError: an operation's numbers or its place make no sense.
    """
    names = [operation.name for operation in augment]
    if "random_resized_crop" not in names:
        return Chain([CentreSquare(preprocess), *(_build(operation, preprocess) for operation in augment)])
    if "random_crop" in names[: names.index("random_resized_crop")]:
        raise UserError("augment: random_crop before random_resized_crop makes no sense; keep one of the two")
    return Chain([_build(operation, preprocess) for operation in augment])


def _build(operation: Augmentation, preprocess: Preprocess) -> Transform:
    size = preprocess.size
    transform: Transform
    match operation:
        case RandomCrop():
            if operation.mode == "reflect" and operation.padding >= size:
                raise UserError(
                    f"augment.random_crop.padding: {operation.padding} is not valid; "
                    f"reflection has at most {size - 1} pixels here"
                )
            transform = PaddedCrop(size, operation.padding, operation.mode)
        case RandomResizedCrop():
            for key, (low, high) in (("scale", operation.scale), ("ratio", operation.ratio)):
                if low > high:
                    raise UserError(
                        f"augment.random_resized_crop.{key}: [{low:g}, {high:g}] is not valid; the smaller comes first"
                    )
            transform = v2.RandomResizedCrop(
                size, operation.scale, operation.ratio, _INTERPOLATIONS[operation.interpolation], antialias=True
            )
        case HorizontalFlip():
            transform = Flip(operation.p)
        case Rotation():
            transform = v2.RandomRotation(operation.degrees, InterpolationMode.BILINEAR)
        case Grayscale():
            transform = v2.RandomGrayscale(operation.p)
        case ColorJitter():
            transform = v2.ColorJitter(operation.brightness, operation.contrast, operation.saturation, operation.hue)
        case RandAugment():
            transform = PillowRandAugment(operation.policy, preprocess)
        case _:
            assert_never(operation)
    return transform
