"""Where the network's square lies in an image: drawn from the image's size alone, before anything is decoded.

A loader may therefore decode only what it needs, at the scale it needs, and two loaders can cut the same square.
Drawing and resizing are those of torchvision, to the bit, written out: its own take three times as long to draw, and a
second and a half to import.
"""

import math
import platform
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from distillery.experiment.schema.augmentation import RandomResizedCrop
from distillery.experiment.schema.block import Interpolation
from distillery.experiment.schema.recipe import Preprocess

# On tensors, "nearest" is an old rounding kept for old models; "nearest-exact" is what Pillow and scikit-image do.
_MODES: dict[Interpolation, str] = {"nearest": "nearest-exact", "bilinear": "bilinear", "bicubic": "bicubic"}


class CropParams(NamedTuple):
    """A window of the image, the size it is resized to, and where the square is cut from that; all in pixels."""

    top: int
    left: int
    height: int
    width: int
    new_height: int
    new_width: int
    cut_top: int = 0
    cut_left: int = 0

    def reduced(self, reduction: int, height: int, width: int) -> "CropParams":
        """The same square in an image of which ``reduction`` pixels a side were made one, now ``height x width``."""
        top, left = round(self.top / reduction), round(self.left / reduction)
        bottom = min(round((self.top + self.height) / reduction), height)
        right = min(round((self.left + self.width) / reduction), width)
        return self._replace(top=top, left=left, height=bottom - top, width=right - left)


class Crop(Protocol):
    """A way to place the square; drawing comes from torch's global generator."""

    size: int
    interpolation: Interpolation
    antialias: bool
    reduced_decoding: bool

    def draw(self, height: int, width: int) -> CropParams:
        """Place the square in an image of this size."""


def apply_crop(image_CHW: Tensor, params: CropParams, crop: Crop) -> Tensor:
    """Cut, resize and cut again: uint8 (3, H, W) to (3, size, size)."""
    top, left, height, width, new_height, new_width, cut_top, cut_left = params
    window = image_CHW[:, top : top + height, left : left + width]
    if (height, width) != (new_height, new_width):
        window = _resized(window, new_height, new_width, crop)
    return window[:, cut_top : cut_top + crop.size, cut_left : cut_left + crop.size]


def _resized(image_CHW: Tensor, height: int, width: int, crop: Crop) -> Tensor:
    """Resize bytes in the CPU's memory as torchvision's v2 transforms do, to the bit."""
    mode = _MODES[crop.interpolation]
    # As one block with the channels innermost, which torch resizes a third faster to the same bytes.
    image_1CHW = image_CHW.permute(1, 2, 0).contiguous()[None].permute(0, 3, 1, 2)
    if mode == "nearest-exact":
        return interpolate(image_1CHW, (height, width), mode=mode)[0]
    if mode == "bilinear" and not _resizes_bytes():
        image_1CHW = image_1CHW.to(torch.float32)
    resized_CHW = interpolate(image_1CHW, (height, width), mode=mode, align_corners=False, antialias=crop.antialias)[0]
    return resized_CHW if resized_CHW.dtype == torch.uint8 else resized_CHW.round_().to(torch.uint8)


@cache
def _resizes_bytes() -> bool:
    """Whether torchvision has torch resize bytes linearly as they are; elsewhere floats are faster, and round else."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") or platform.machine() in ("aarch64", "arm64")


class CentreSquare:
    """Resize the short side to ``resize`` pixels, then cut the centre square of ``size``: no draw at all."""

    reduced_decoding = False

    def __init__(self, preprocess: Preprocess) -> None:
        self.size, self.resize = preprocess.size, preprocess.resize or preprocess.size
        self.interpolation, self.antialias = preprocess.interpolation, preprocess.rule != "bake"
        # BAKE's code rounds centres up; Pillow and torchvision go to the even side.
        self._rounded: Callable[[float], int] = math.ceil if preprocess.rule == "bake" else round

    def draw(self, height: int, width: int) -> CropParams:
        """Place the square in an image of this size."""
        return _centre(height, width, self.resize, self.size, self._rounded)


class ResizedCrop:
    """Cut a window of random area and aspect ratio, and resize it to the square."""

    def __init__(self, operation: RandomResizedCrop, size: int) -> None:
        self.size, self.interpolation, self.antialias = size, operation.interpolation, operation.rule != "bake"
        self.reduced_decoding = operation.reduced_decoding
        self._draw = {"torchvision": _torchvision, "dali": _dali, "bake": _bake}[operation.rule]
        self._scale, self._ratio = operation.scale, operation.ratio

    def draw(self, height: int, width: int) -> CropParams:
        """Place the square in an image of this size."""
        window = self._draw(height, width, self._scale, self._ratio)
        if window is None:
            return _centre(height, width, self.size, self.size, math.ceil)
        return CropParams(*window, self.size, self.size)


def _centre(height: int, width: int, resize: int, size: int, rounded: Callable[[float], int]) -> CropParams:
    short = min(height, width)
    new_height, new_width = int(resize * height / short), int(resize * width / short)
    cut_top, cut_left = rounded((new_height - size) / 2), rounded((new_width - size) / 2)
    return CropParams(0, 0, height, width, new_height, new_width, cut_top, cut_left)


Window = tuple[int, int, int, int]


def _torchvision(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Window:
    drawn, (low, high) = torch.empty(1), _logarithms(tuple(ratio))
    for _ in range(10):
        area = height * width * drawn.uniform_(*scale).item()
        aspect = drawn.uniform_(low, high).exp_().item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return _integer(height - h + 1), _integer(width - w + 1), h, w
    w, h = width, height
    if width / height < min(ratio):
        h = round(w / min(ratio))
    elif width / height > max(ratio):
        w = round(h * max(ratio))
    return (height - h) // 2, (width - w) // 2, h, w


@cache
def _logarithms(ratio: tuple[float, ...]) -> list[float]:
    """In single precision, as torchvision takes them."""
    return torch.log(torch.tensor(ratio)).tolist()


def _dali(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Window:
    """NVIDIA DALI's RandomCropGenerator with the 100 attempts of its image decoders and random_resized_crop."""
    widest, tallest = max(1, int(height * ratio[1])), max(1, int(width / ratio[0]))
    least = scale[0] * height * width
    if height * widest < least:
        window = height, widest
    elif width * tallest < least:
        window = tallest, width
    else:
        window = _dali_attempts(height, width, scale, ratio) or _dali_fallback(height, width, scale, ratio)
    top, left = _integer(height - window[0] + 1), _integer(width - window[1] + 1)
    return top, left, *window


def _dali_attempts(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int] | None:
    for _ in range(100):
        area = _uniform(*scale) * height * width
        aspect = math.exp(_uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(1, round(math.sqrt(area * aspect))), max(1, round(math.sqrt(area / aspect)))
        if w <= width and h <= height and ratio[0] <= w / h <= ratio[1]:
            return h, w
    return None


def _dali_fallback(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int]:
    """The whole image, cut to the nearest ratio allowed and shrunk to the largest area allowed."""
    h = min(height, max(1, int(width / ratio[0])))
    w = min(width, max(1, int(height * ratio[1])))
    shrink = math.sqrt(min(1.0, scale[1] * height * width / (h * w)))
    return max(1, int(h * shrink)), max(1, int(w * shrink))


def _bake(height: int, width: int, scale: Sequence[float], ratio: Sequence[float]) -> Window | None:
    """The rule of BAKE's ImageNet code; None where ten tries do not fit."""
    for _ in range(10):
        area, aspect = _uniform(*scale) * height * width, _uniform(*ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if _uniform(0, 1) < 0.5:
            w, h = h, w
        if 0 < h <= height and 0 < w <= width:
            top = _integer(height - h) if h < height else 0
            left = _integer(width - w) if w < width else 0
            return top, left, h, w
    return None


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), dtype=torch.float64))


def _integer(below: int) -> int:
    return int(torch.randint(below, ()))
