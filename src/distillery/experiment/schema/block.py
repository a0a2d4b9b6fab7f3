"""What every mapping of a configuration file shares."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler

# Every number of a configuration has bounds; these are for what has no narrower ones.
LARGEST = 10**9
Count = Annotated[int, Field(ge=1, le=LARGEST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]  # of what must not be all
Triple = tuple[Probability, Probability, Probability]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=250)]  # a file system takes 255 letters
LONGEST_NAME = 200  # of what names files, for these get endings
FileName = Annotated[str, Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


def apart(named: dict[str, Any]) -> dict[str, Any]:
    """Refuse names that differ in case only: they name files, and on many disks these would be the same file."""
    first: dict[str, str] = {}
    for name in named:
        other = first.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{other!r} and {name!r} differ in case only, and on some disks name one folder")
    return named


@dataclass(frozen=True)
class Neutral:
    """Marks a key that came after the first release: with this value, a run is what it was without the key.

    Such a key is left out of a run's digest while it has its neutral value, so that a release that adds it retrains
    nothing: ``key: Annotated[int, Neutral(1)] = 1``. The default may change later; the neutral value never does.
    """

    value: object


def _strict(schema: Any) -> Any:  # noqa: ANN401
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool", "str"):
            schema["strict"] = True
        if schema.get("type") == "float":
            schema["allow_inf_nan"] = False
    if isinstance(schema, dict | list | tuple):
        for part in schema.values() if isinstance(schema, dict) else schema:
            _strict(part)
    return schema


class Block(BaseModel):
    """A mapping of a configuration file: no unknown keys, and no change after it was read.

    Its fields take nothing for something else, whatever they are: no truth value, text, infinity or NaN for a number,
    no 1.0 for a whole number, and no number for a truth value or text.

    A block that stands for something that is computed (a term, an augmentation, ...) has an integer ``numerics``. Raise
    it when the same keys make something else than before: the digests of all runs that use the block change with it.
    """

    numerics: ClassVar[int | None] = None

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:  # noqa: ANN401
        """Not pydantic's own strictness, which would also refuse a list for a tuple and a mapping for a block."""
        return _strict(handler(source))


class WeightsChoice(Block):
    """Which weights of a file to take, where it holds several, or more than the network's."""

    nest: str | None = None
    prefix: str | None = None
    ignore: tuple[str, ...] = ()


class Statistics(Block):
    """Per-channel mean and standard deviation (RGB, pixels in [0, 1])."""

    mean: Triple
    std: Triple


IMAGENET = Statistics(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
