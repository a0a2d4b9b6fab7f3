"""FixMatch's strong augmentation, as semi-supervised learning and MLKD use it (Sohn et al., NeurIPS 2020).

Operations of RandAugment's list, each of a uniformly drawn strength, and then a square that is painted over. They draw
from Python's generator.
"""

import random
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

# What is painted over: nearly the mean of natural images.
COVER = (125, 123, 114)


def _enhanced(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


def _affine(row: Callable[[float, int, int], tuple[float, ...]]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, strength: image.transform(
        image.size, Image.Transform.AFFINE, row(strength, *image.size), Image.Resampling.NEAREST
    )


# Each with the range of its strength: factors, bits, degrees, a threshold, shares of the side.
OPERATIONS: tuple[tuple[Callable[[Image.Image, float], Image.Image], float, float], ...] = (
    (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    (_enhanced(ImageEnhance.Brightness), 0.05, 0.95),
    (_enhanced(ImageEnhance.Color), 0.05, 0.95),
    (_enhanced(ImageEnhance.Contrast), 0.05, 0.95),
    (lambda image, _: ImageOps.equalize(image), 0, 1),
    (lambda image, _: image, 0, 1),
    (lambda image, bits: ImageOps.posterize(image, int(bits)), 4, 8),
    (lambda image, degrees: image.rotate(degrees), -30, 30),
    (_enhanced(ImageEnhance.Sharpness), 0.05, 0.95),
    (_affine(lambda share, width, height: (1, share, 0, 0, 1, 0)), -0.3, 0.3),
    (_affine(lambda share, width, height: (1, 0, 0, share, 1, 0)), -0.3, 0.3),
    (lambda image, threshold: ImageOps.solarize(image, int(threshold)), 0, 256),
    (_affine(lambda share, width, height: (1, 0, share * width, 0, 1, 0)), -0.3, 0.3),
    (_affine(lambda share, width, height: (1, 0, 0, 0, 1, share * height)), -0.3, 0.3),
)


class FixMatchAugment:
    """``operations`` of the list, drawn with repetition, then a square of a side up to ``cutout`` x the width."""

    def __init__(self, operations: int, cutout: float) -> None:
        self.operations, self.cutout = operations, cutout

    def __call__(self, image_CHW: Tensor) -> Tensor:
        """Transform one square, uint8 (3, H, W)."""
        image = Image.fromarray(image_CHW.permute(1, 2, 0).cpu().numpy())
        for operation, low, high in random.choices(OPERATIONS, k=self.operations):
            image = operation(image, low + (high - low) * random.random())
        made = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(image_CHW.device)
        self._cover(made)
        return made

    def _cover(self, image_CHW: Tensor) -> None:
        """Paint over a square around a point anywhere in the image; what would lie outside is cut off."""
        _, height, width = image_CHW.shape
        side = random.random() * self.cutout * width
        if side == 0:
            return
        left, top = (max(0.0, random.random() * extent - side / 2) for extent in (width, height))
        cover = torch.tensor(COVER, dtype=image_CHW.dtype, device=image_CHW.device)[:, None, None]
        image_CHW[:, int(top) : int(top + side) + 1, int(left) : int(left + side) + 1] = cover
