"""What every mapping of a configuration file shares."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Triple = tuple[float, float, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Block(BaseModel):
    """A mapping of a configuration file: no unknown keys, and no change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
