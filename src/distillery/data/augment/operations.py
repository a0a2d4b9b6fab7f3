"""What is done to the network's square: uint8 (3, size, size) in and out.

The operations are torchvision's v2 transforms, which draw from torch's global generator, and timm's RandAugment, which
draws from Python's and numpy's. The two that small images are trained with, padded crop and flip, are written out: v2's
take twice as long, a good part of a sample's time. They also work on a whole batch, given the words that the generator
would have drawn for each image.

B batch, C channels, H W pixels, K words an image.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, assert_never

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from distillery.data.augment.fixmatch import FixMatchAugment
from distillery.experiment.schema.augmentation import (
    Augmentation,
    ColorJitter,
    FixMatch,
    Grayscale,
    HorizontalFlip,
    Lighting,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Rotation,
)
from distillery.experiment.schema.block import IMAGENET, Statistics
from distillery.experiment.schema.recipe import Preprocess

Step = Callable[[Tensor], Tensor]
Words = npt.NDArray[np.uint32]


class PaddedCrop:
    """Pad each side by ``padding`` pixels (zeros, or reflected), then cut a uniformly placed square of ``size``.

    ``padding`` and the place are drawn for squares of ``drawn_for`` pixels, and scaled to those of ``size``.
    """

    words: ClassVar[int] = 2

    def __init__(self, size: int, padding: int, mode: str, drawn_for: int) -> None:
        self.size, self.mode, self.scale, self.places = size, mode, size / drawn_for, 2 * padding + 1
        self.padding = round(padding * self.scale)
        if mode == "reflect":
            self.padding = min(self.padding, size - 1)

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one square."""
        if self.padding:
            image_CHW = F.pad(image_CHW, 4 * (self.padding,), mode=self.mode)
        top, left = (
            min(round(int(torch.randint(self.places, ())) * self.scale), 2 * self.padding) for _ in ("top", "left")
        )
        return image_CHW[:, top : top + self.size, left : left + self.size]

    def many(self, images_BCHW: Tensor, words_BK: Words) -> Tensor:
        """Transform each square as a call does whose draws are these words."""
        places_BK = np.rint(words_BK % np.uint32(self.places) * self.scale).astype(np.int64)
        top_B, left_B = torch.from_numpy(places_BK).clamp_(max=2 * self.padding).to(images_BCHW.device).unbind(1)
        if self.padding:
            images_BCHW = self._padded(images_BCHW)
        windows = images_BCHW.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows[torch.arange(len(images_BCHW), device=images_BCHW.device), :, top_B, left_B]

    def _padded(self, images_BCHW: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(images_BCHW, 4 * (self.padding,))
        # On GPUs, torch reflects floats alone.
        places = torch.arange(-self.padding, self.size + self.padding, device=images_BCHW.device)
        places = (self.size - 1) - ((self.size - 1) - places.abs()).abs()
        return images_BCHW.index_select(2, places).index_select(3, places)


class Flip:
    """Mirror left and right with probability ``p``."""

    words: ClassVar[int] = 1

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        return self.apply(image_CHW, self.draw())

    def draw(self) -> bool:
        """Whether the next image is mirrored."""
        return float(torch.rand(())) < self.p

    def apply(self, image_CHW: Tensor, mirrored: bool) -> Tensor:
        """Transform one image as was drawn."""
        return image_CHW.flip(-1) if mirrored else image_CHW

    def many(self, images_BCHW: Tensor, words_BK: Words) -> Tensor:
        """Transform each image as a call does whose draw is its word, of which a float has 24 bits; in place."""
        rows = np.flatnonzero((words_BK[:, 0] & np.uint32(0xFFFFFF)) / 2**24 < self.p)
        at = torch.from_numpy(rows).to(images_BCHW.device)
        images_BCHW[at] = images_BCHW[at].flip(-1)
        return images_BCHW


class PillowRandAugment:
    """timm's RandAugment with the settings of its training pipeline; draws from Python's and numpy's generators.

    Translations reach 45 % of the side. Uncovered corners get the mean that images are normalised by, so that the
    network sees zeros there; timm's grey, 128, where they are not normalised.
    """

    def __init__(self, policy: str, preprocess: Preprocess, dataset_mean: Sequence[float]) -> None:
        from timm.data.auto_augment import rand_augment_transform

        mean = _mean(preprocess, dataset_mean)
        settings = {
            "translate_const": int(preprocess.size * 0.45),
            "interpolation": Image.Resampling[preprocess.interpolation.upper()],
            "img_mean": (128, 128, 128) if mean is None else tuple(round(255 * value) for value in mean),
        }
        self._augment = rand_augment_transform(policy, settings)

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one image."""
        augmented = self._augment(Image.fromarray(image_CHW.permute(1, 2, 0).cpu().numpy()))
        return torch.from_numpy(np.array(augmented)).permute(2, 0, 1).to(image_CHW.device)


def _mean(preprocess: Preprocess, dataset_mean: Sequence[float]) -> Sequence[float] | None:
    if isinstance(preprocess.normalize, Statistics):
        return preprocess.normalize.mean
    return {"imagenet": IMAGENET.mean, "dataset": dataset_mean, "none": None}[preprocess.normalize]


def build_step(operation: Augmentation, preprocess: Preprocess, dataset_mean: Sequence[float], size: int) -> Step:
    """Turn one line of ``augment`` into what it does to a square of ``size``: equal draws do the same at any size."""
    match operation:
        case RandomCrop():
            return PaddedCrop(size, operation.padding, operation.mode, preprocess.size)
        case HorizontalFlip():
            return Flip(operation.p)
        case Rotation():
            from torchvision.transforms import InterpolationMode, v2

            return v2.RandomRotation(operation.degrees, InterpolationMode.BILINEAR)  # type: ignore[no-any-return]
        case Grayscale():
            from torchvision.transforms import v2

            return v2.RandomGrayscale(operation.p)  # type: ignore[no-any-return]
        case ColorJitter():
            from torchvision.transforms import v2

            jitter = v2.ColorJitter(operation.brightness, operation.contrast, operation.saturation, operation.hue)
            return jitter if operation.p == 1 else v2.RandomApply([jitter], operation.p)  # type: ignore[no-any-return]
        case RandAugment():
            return PillowRandAugment(operation.policy, preprocess.model_copy(update={"size": size}), dataset_mean)
        case FixMatch():
            return FixMatchAugment(operation.operations, operation.cutout)
        case RandomResizedCrop() | Lighting():
            raise AssertionError(f"{operation.name} works on the whole image or on floats, not on the square")
        case _:
            assert_never(operation)
