"""What a recipe may say about augmentation: the operations that change a training image."""

import re
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from distillery.experiment.schema.block import Block, Fraction, Interpolation, Neutral, Probability

# timm's mmax where a policy has none.
_LARGEST_MAGNITUDE = 10


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the smaller comes first")
    return bounds


def _known_policy(policy: str) -> str:
    small, share, deviation = r"\d\d?", r"(0?\.\d+|[01](\.0*)?)", r"\d{1,3}(\.\d+)?"
    if not re.fullmatch(
        rf"rand(-(m{small}|n[1-9]\d?|mmax[1-9]\d?|inc[01]|p{share}|mstd{deviation}|tweights))*", policy
    ):
        raise ValueError(
            "join `rand` and whole numbers m, n, mmax, inc or decimals p, mstd by dashes, e.g. rand-m7-mstd0.5-inc1"
        )
    names = re.findall(r"-([a-z]+)", policy)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it names {twice[0]} twice")
    numbers = dict(re.findall(r"-(mmax|m)(\d+)", policy))
    largest = int(numbers.get("mmax", _LARGEST_MAGNITUDE))
    if int(numbers.get("m", 0)) > largest:
        raise ValueError(f"its magnitude m is above mmax, {largest}, where timm cuts it off")
    return policy


Ratio = Annotated[float, Field(ge=0.01, le=100)]
Factor = Annotated[float, Field(ge=0, le=100)]


class Operation(Block):
    """What changes a training image."""

    numerics: ClassVar[int | None] = 1


class RandomCrop(Operation):
    """Pad each side by `padding` pixels, then cut a random square of the input size."""

    name: Literal["random_crop"]
    padding: Annotated[int, Field(ge=0, le=4096)]
    mode: Literal["constant", "reflect"] = "constant"


class RandomResizedCrop(Operation):
    """Cut a random area and aspect ratio of the whole image, then resize it to the input size.

    `torchvision` draws the logarithm of the ratio uniformly and tries 10 times before it cuts a centre. `dali` is the
    rule of NVIDIA DALI: 100 tries, the ratio held after rounding, and a random place even when no try fits. `bake` is
    that of BAKE's ImageNet code: the ratio itself is uniform, sides are swapped every other time, the last row and
    column are never reached, and OpenCV's plain bilinear resizing takes the place of the antialiased one.

    `reduced_decoding` decodes JPEGs at 1/2, 1/4 or 1/8 of their size where the crop stays as large as the input.
    """

    name: Literal["random_resized_crop"]
    scale: Annotated[tuple[Fraction, Fraction], AfterValidator(_ascending)] = (0.08, 1.0)
    ratio: Annotated[tuple[Ratio, Ratio], AfterValidator(_ascending)] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    rule: Literal["torchvision", "dali", "bake"] = "torchvision"
    reduced_decoding: bool = False

    @model_validator(mode="after")
    def _bilinear_as_bake(self) -> Self:
        if self.rule == "bake" and self.interpolation != "bilinear":
            raise ValueError("`rule: bake` goes with `interpolation: bilinear` only")
        return self


class HorizontalFlip(Operation):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    p: Probability = 0.5


class Rotation(Operation):
    """Rotate by a uniform angle in [-degrees, degrees]."""

    name: Literal["rotation"]
    degrees: Annotated[float, Field(ge=0, le=180)]


class Grayscale(Operation):
    """Drop the colours, keeping three channels."""

    name: Literal["grayscale"]
    p: Probability = 0.1


class ColorJitter(Operation):
    """Scale brightness, contrast and saturation by factors in [1-x, 1+x], and shift the hue by up to x."""

    name: Literal["color_jitter"]
    brightness: Factor = 0.0
    contrast: Factor = 0.0
    saturation: Factor = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    p: Annotated[Probability, Neutral(1.0)] = 1.0


class RandAugment(Operation):
    """timm's RandAugment, by its policy string."""

    name: Literal["rand_augment"]
    policy: Annotated[str, AfterValidator(_known_policy)] = "rand-m7-mstd0.5-inc1"


class FixMatch(Operation):
    """FixMatch's strong augmentation: some operations of RandAugment's list, then a square that is painted over."""

    name: Literal["fixmatch"]
    operations: Annotated[int, Field(ge=0, le=100)] = 2
    cutout: Probability = Field(0.5, description="largest side of that square, as a share of the image's")


class Lighting(Operation):
    """Shift the colours along the principal axes of ImageNet's pixels, by three normal draws of deviation `std`."""

    name: Literal["lighting"]
    std: Factor = 0.1


Augmentation = Annotated[
    RandomCrop
    | RandomResizedCrop
    | HorizontalFlip
    | Rotation
    | Grayscale
    | ColorJitter
    | RandAugment
    | FixMatch
    | Lighting,
    Field(discriminator="name"),
]


def check_order(operations: tuple[Augmentation, ...], size: int) -> None:
    """Check what operations say together, for network inputs of ``size`` pixels.

    Raises:
        ValueError: one stands where it cannot work, or pads by more than there is to reflect.
    """
    names = [operation.name for operation in operations]
    if "random_resized_crop" in names[1:]:
        raise ValueError("random_resized_crop works on the whole image; put it first, and only once")
    if "lighting" in names[:-1]:
        raise ValueError("lighting is added to what all others have made; put it last, and only once")
    for operation in operations:
        if isinstance(operation, RandomCrop) and operation.mode == "reflect" and operation.padding >= size:
            raise ValueError(f"random_crop pads by {operation.padding}, but reflection has {size - 1} pixels at most")
