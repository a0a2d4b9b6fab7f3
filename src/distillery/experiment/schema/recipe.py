"""What a recipe may say: how a network is trained."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from distillery.experiment.schema.augmentation import Augmentation, check_order
from distillery.experiment.schema.block import (
    LARGEST,
    Block,
    Epochs,
    Fraction,
    Interpolation,
    Neutral,
    Pixels,
    Positive,
    Probability,
    Share,
    Statistics,
)

Rate = Annotated[float, Field(gt=0, le=1e38)]  # what float32 holds; a senseless one ends in the first epoch
Decay = Annotated[float, Field(ge=0, le=10)]
Alpha = Annotated[float, Field(ge=0, le=100)]
# Of pixels in [0, 1]: a quarter of the step between two of their 256 values.
LEAST_DEVIATION = 0.001


class Sgd(Block):
    """Stochastic gradient descent; weight decay on every parameter, as all five reference systems have it."""

    name: Literal["sgd"]
    lr: Rate
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Decay = 0.0

    @field_validator("nesterov")
    @classmethod
    def _with_momentum(cls, nesterov: bool, info: ValidationInfo) -> bool:
        if nesterov and info.data.get("momentum") == 0:
            raise ValueError("it needs a `momentum` above 0")
        return nesterov


class AdamW(Block):
    """AdamW; biases, norms and what the model itself exempts are not decayed."""

    name: Literal["adamw"]
    lr: Rate
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Fraction = 1e-8
    weight_decay: Decay = 0.01


Plain = bool | int | float | str


def _plain(value: object) -> object:
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, Plain) for part in parts):
        raise ValueError("expected a number, true, false, text, or a list of these")
    if not all(abs(part) <= LARGEST for part in parts if isinstance(part, int | float)):
        raise ValueError(f"expected finite numbers, none above {LARGEST:,}")
    return value


class TimmOptimizer(Block):
    """Any other optimizer of timm, with its further arguments; what is not decayed is as for AdamW.

    Names and arguments are checked where timm is imported: by `distillery check` and when the training begins.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[
        str, Annotated[Any, AfterValidator(_plain), WithJsonSchema({"type": ["number", "boolean", "string", "array"]})]
    ] = Field(init=False)

    name: str = Field(
        description="as timm lists them, e.g. lamb, lars, lion", json_schema_extra={"not": {"enum": ["sgd", "adamw"]}}
    )
    lr: Rate
    weight_decay: Decay = 0.0


def _optimizer_class(value: Any) -> str:  # noqa: ANN401
    name = value.get("name") if isinstance(value, Mapping) else getattr(value, "name", None)
    return name if name in ("sgd", "adamw") else "other"


Optimizer = Annotated[
    Annotated[Sgd, Tag("sgd")] | Annotated[AdamW, Tag("adamw")] | Annotated[TimmOptimizer, Tag("other")],
    Discriminator(_optimizer_class),
]


class RatioWarmup(Block):
    """Multiply the schedule by start*(1-e/epochs) + e/epochs in epoch e < epochs (MGD, BAKE)."""

    name: Literal["ratio"]
    epochs: Epochs
    start: Fraction = 0.1
    extends: bool = Field(
        False, description="add the warm-up to the run: total epochs and drops move by `epochs` (MGD)"
    )


class AbsoluteWarmup(Block):
    """Rise linearly from `lr` to the base rate over the first epochs, replacing the schedule there (USI)."""

    name: Literal["absolute"]
    epochs: Epochs
    lr: Rate


class StepwiseWarmup(Block):
    """Multiply by (step + 1) / (steps in `epochs` epochs), step by step (label-smoothed KD)."""

    name: Literal["stepwise"]
    epochs: Epochs


Warmup = Annotated[RatioWarmup | AbsoluteWarmup | StepwiseWarmup, Field(discriminator="name")]


class StepSchedule(Block):
    """Multiply the rate by `ratio` when each epoch of `drops` begins, or every `every` epochs."""

    name: Literal["step"]
    drops: Annotated[tuple[Epochs, ...], Field(min_length=1)] | None = None
    every: Epochs | None = None
    ratio: Fraction = 0.1
    warmup: Warmup | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.drops is None) == (self.every is None):
            raise ValueError("a step schedule needs either `drops` or `every`")
        if self.drops is not None and any(now >= then for now, then in pairwise(self.drops)):
            raise ValueError("`drops` must rise from one to the next")
        return self


class CosineSchedule(Block):
    """Half a cosine from the base rate to `min_lr`, one value an epoch, then `cooldown` epochs at `min_lr`."""

    name: Literal["cosine"]
    min_lr: Annotated[float, Field(ge=0, le=1e38)] = 0.0
    cooldown: Annotated[int, Field(ge=0, le=100_000)] = Field(0, description="epochs added to the run at min_lr")
    restart_every: Epochs | None = Field(None, description="begin again after so many epochs, instead of one arc")
    warmup: Warmup | None = None


class ConstantSchedule(Block):
    """The base rate throughout."""

    name: Literal["constant"]
    warmup: Warmup | None = None


Schedule = Annotated[StepSchedule | CosineSchedule | ConstantSchedule, Field(discriminator="name")]


class Ema(Block):
    """Exponential moving average of all weights and buffers, updated every step; evaluated beside the raw weights."""

    decay: Share


class Mix(Block):
    """Mixup and cutmix, one of them a batch; targets become soft."""

    mixup: Alpha = Field(0.0, description="alpha of mixup; 0 is off")
    cutmix: Alpha = Field(0.0, description="alpha of cutmix; 0 is off")
    p: Fraction = Field(1.0, description="share of batches that are mixed")
    switch: Probability = Field(0.5, description="share of cutmix when both are on")

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if not self.mixup and not self.cutmix:
            raise ValueError("give `mixup`, `cutmix` or both an alpha above 0")
        return self


class Preprocess(Block):
    """How an image reaches the network: resize the short side, cut the centre square, normalise.

    `rule: bake` is that of BAKE's ImageNet code: OpenCV's bilinear resizing without antialiasing, centres rounded up.
    """

    numerics: ClassVar[int | None] = 1

    size: Pixels = Field(description="side of the network's input, in pixels")
    resize: Pixels | None = Field(None, description="short side before the centre crop; default: `size`")
    interpolation: Interpolation = "bilinear"
    normalize: Literal["dataset", "imagenet", "none"] | Statistics = Field(
        "dataset", description="dataset: mean and std of the training images; imagenet; none; or {mean, std}"
    )
    rule: Literal["torchvision", "bake"] = "torchvision"

    @field_validator("resize")
    @classmethod
    def _room_for_the_square(cls, resize: int | None, info: ValidationInfo) -> int | None:
        if resize is not None and resize < info.data.get("size", 0):
            raise ValueError(f"it is smaller than `size`, {info.data['size']}; give at least that")
        return resize

    @field_validator("normalize")
    @classmethod
    def _something_to_divide_by(cls, normalize: str | Statistics) -> str | Statistics:
        if isinstance(normalize, Statistics) and min(normalize.std) < LEAST_DEVIATION:
            raise ValueError(f"each `std` must be {LEAST_DEVIATION} or more; less would blow up rounding errors")
        return normalize

    @model_validator(mode="after")
    def _bilinear_as_bake(self) -> Self:
        if self.rule == "bake" and self.interpolation != "bilinear":
            raise ValueError("`rule: bake` goes with `interpolation: bilinear` only")
        return self

    @property
    def geometry(self) -> tuple[int, int, str]:
        """Which part of an image the network sees, and how large: size, short side before the crop, rule."""
        return self.size, self.resize or self.size, self.rule

    @property
    def pixels(self) -> tuple[int, int, str, str]:
        """All that decides the pixels of the network's square."""
        return *self.geometry, self.interpolation


def _check_schedule(schedule: Schedule, epochs: int, lr: float) -> None:
    """What a schedule says must come to pass within a run of so many epochs, from this base rate."""
    if isinstance(schedule, StepSchedule) and schedule.drops is not None and schedule.drops[-1] >= epochs:
        raise ValueError(
            f"`drops` has {schedule.drops[-1]}, but {epochs} epochs, counted from 0, end with {epochs - 1}"
        )
    if isinstance(schedule, StepSchedule) and schedule.every is not None and schedule.every >= epochs:
        raise ValueError(f"`every` is {schedule.every}, and {epochs} epochs end before the first drop")
    if isinstance(schedule, CosineSchedule):
        if schedule.min_lr > lr:
            raise ValueError(f"`min_lr` is above the base rate `lr`, {lr}")
        if schedule.restart_every is not None and schedule.restart_every > epochs:
            raise ValueError(f"`restart_every` is more than all {epochs} epochs")
    warmup = schedule.warmup
    if isinstance(warmup, AbsoluteWarmup) and warmup.lr > lr:
        raise ValueError(f"`warmup.lr` is above the base rate `lr`, {lr}")
    if warmup is not None and warmup.epochs > epochs and not (isinstance(warmup, RatioWarmup) and warmup.extends):
        raise ValueError(f"`warmup.epochs` is more than all {epochs} epochs")


class Recipe(Block):
    """How a network is trained. Batch and learning rate are global: neither is scaled by the number of devices."""

    epochs: Epochs
    batch: Annotated[int, Field(ge=1, le=10**6)] = Field(description="images in one optimizer step, over all devices")
    optimizer: Optimizer
    schedule: Schedule
    preprocess: Preprocess
    augment: tuple[Augmentation, ...] = ()
    augment_view: Annotated[tuple[Augmentation, ...] | None, Neutral(None)] = Field(
        None, description="what makes the second view of terms that compare two, as MLKD; default: `augment` once more"
    )
    mix: Mix | None = None
    repeats: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="repeated augmentation: times each image occurs in an epoch it is in"
    )
    crops: Annotated[Epochs | None, Neutral(None)] = Field(
        None,
        description="so many views of each image, the same for every seed, are used again and again in place of new "
        "ones: view (epoch + copy) modulo crops",
    )
    classifier_std: Annotated[float, Field(gt=0, le=100)] | None = Field(
        None,
        description="first weights of the last layer: normal with this standard deviation, bias 0; without it, the "
        "network's own",
    )
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    clip_norm: Positive | None = Field(None, description="largest gradient norm of one step")
    ema: Ema | None = None
    sync_batchnorm: bool = Field(False, description="batch statistics over all devices")
    drop_last: bool = Field(True, description="leave out the last, smaller batch of an epoch")
    selection: Literal["last", "best"] = Field("last", description="which epoch's weights the run ends with")
    deterministic: bool = Field(True, description="bit-reproducible kernels; false is a little faster on GPUs")
    on_nan: Annotated[Literal["stop", "skip"], Neutral("stop")] = Field(
        "stop", description="a step with a loss or gradient that is NaN or infinite ends the run, or is left out"
    )

    @field_validator("schedule")
    @classmethod
    def _within_the_run(cls, schedule: Schedule, info: ValidationInfo) -> Schedule:
        if {"epochs", "optimizer"} <= info.data.keys():
            _check_schedule(schedule, info.data["epochs"], info.data["optimizer"].lr)
        return schedule

    @property
    def total_epochs(self) -> int:
        """The epochs that a run really lasts: the recipe's, an extending warm-up's and a cosine's cool-down."""
        warmup = self.schedule.warmup
        extra = warmup.epochs if warmup is not None and warmup.name == "ratio" and warmup.extends else 0
        return self.epochs + extra + (self.schedule.cooldown if self.schedule.name == "cosine" else 0)

    def trains_apart(self, teacher: Preprocess) -> bool:
        """Whether a teacher that is prepared for like this must see training images cut for it, not the student's.

        A ``random_resized_crop`` takes the place of the evaluation's crop: then only the size may differ.
        """
        if any(operation.name == "random_resized_crop" for operation in self.augment):
            return teacher.size != self.preprocess.size
        return teacher.geometry != self.preprocess.geometry

    @field_validator("augment", "augment_view")
    @classmethod
    def _in_order(
        cls, augment: tuple[Augmentation, ...] | None, info: ValidationInfo
    ) -> tuple[Augmentation, ...] | None:
        if "preprocess" in info.data:
            check_order(augment or (), info.data["preprocess"].size)
        return augment
