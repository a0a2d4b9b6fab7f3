"""What every mapping of a configuration file shares."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Triple = tuple[float, float, float]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True)
class Neutral:
    """Marks a key that came after the first release: with this value, a run is what it was without the key.

    Such a key is left out of a run's digest while it has its neutral value, so that a release that adds it retrains
    nothing: ``key: Annotated[int, Neutral(1)] = 1``. The default may change later; the neutral value never does.
    """

    value: object


class Block(BaseModel):
    """A mapping of a configuration file: no unknown keys, and no change after it was read.

    A block that stands for something that is computed (a term, an augmentation, ...) has an integer ``numerics``. Raise
    it when the same keys make something else than before: the digests of all runs that use the block change with it.
    """

    numerics: ClassVar[int | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True)


class Statistics(Block):
    """Per-channel mean and standard deviation (RGB, pixels in [0, 1])."""

    mean: Triple
    std: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat]


IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
