"""What may be written in the YAML files: experiments, recipes, data sets and objectives.

Every class is one mapping of a file and every field one key; `config/README.md` describes them for the reader, and
`workflow/schemas/*.json` (written by `distillery schema`) tells editors. Nothing here imports torch, because Snakemake
reads the configuration in every job.
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Triple = tuple[float, float, float]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


class Block(BaseModel):
    """A mapping of a configuration file: no unknown keys, and no change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# --- data sets ---------------------------------------------------------------------------------------------------


class Dataset(Block):
    """One line of datasets.yaml: where the raw images lie and how they become Arrow shards."""

    path: str = Field(description="class-folder tree (train/<class>/*, val/<class>/*) or a tar of one")
    bundled: Literal["digits"] | None = Field(
        None, description="write these embedded images to `path` when it is absent"
    )
    val_folder: str | None = Field(None, description="name of the validation folder; found by itself when it is usual")
    on_corrupt: Literal["stop", "skip"] = Field("stop", description="what to do about images that cannot be decoded")


# --- recipes -----------------------------------------------------------------------------------------------------


class Sgd(Block):
    """Stochastic gradient descent; weight decay on every parameter, as all five reference systems have it."""

    name: Literal["sgd"]
    lr: PositiveFloat
    momentum: NonNegativeFloat = 0.9
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Block):
    """AdamW; biases, norms and what the model itself exempts are not decayed."""

    name: Literal["adamw"]
    lr: PositiveFloat
    betas: tuple[float, float] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.01


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="name")]


class RatioWarmup(Block):
    """Multiply the schedule by start*(1-e/epochs) + e/epochs in epoch e < epochs (MGD, BAKE)."""

    name: Literal["ratio"]
    epochs: PositiveInt
    start: Fraction = 0.1
    extends: bool = Field(
        False, description="add the warm-up to the run: total epochs and drops move by `epochs` (MGD)"
    )


class AbsoluteWarmup(Block):
    """Rise linearly from `lr` to the base rate over the first epochs, replacing the schedule there (USI)."""

    name: Literal["absolute"]
    epochs: PositiveInt
    lr: PositiveFloat


class StepwiseWarmup(Block):
    """Multiply by (step + 1) / (steps in `epochs` epochs), step by step (label-smoothed KD)."""

    name: Literal["stepwise"]
    epochs: PositiveInt


Warmup = Annotated[RatioWarmup | AbsoluteWarmup | StepwiseWarmup, Field(discriminator="name")]


class StepSchedule(Block):
    """Multiply the rate by `ratio` when each epoch of `drops` begins, or every `every` epochs."""

    name: Literal["step"]
    drops: tuple[PositiveInt, ...] | None = None
    every: PositiveInt | None = None
    ratio: Fraction = 0.1
    warmup: Warmup | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if (self.drops is None) == (self.every is None):
            raise ValueError("a step schedule needs either `drops` or `every`")
        return self


class CosineSchedule(Block):
    """Half a cosine from the base rate to `min_lr`, one value an epoch, then `cooldown` epochs at `min_lr`."""

    name: Literal["cosine"]
    min_lr: NonNegativeFloat = 0.0
    cooldown: NonNegativeInt = Field(0, description="epochs added to the run at min_lr")
    warmup: Warmup | None = None


class ConstantSchedule(Block):
    """The base rate throughout."""

    name: Literal["constant"]
    warmup: Warmup | None = None


Schedule = Annotated[StepSchedule | CosineSchedule | ConstantSchedule, Field(discriminator="name")]


class Ema(Block):
    """Exponential moving average of all weights and buffers, updated every step; evaluated beside the raw weights."""

    decay: Fraction


class RandomCrop(Block):
    """Pad each side by `padding` pixels, then cut a random square of the input size."""

    name: Literal["random_crop"]
    padding: NonNegativeInt
    mode: Literal["constant", "reflect"] = "constant"


class RandomResizedCrop(Block):
    """Cut a random area and aspect ratio, then resize it to the input size."""

    name: Literal["random_resized_crop"]
    scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"


class HorizontalFlip(Block):
    """Mirror left and right."""

    name: Literal["horizontal_flip"]
    p: Probability = 0.5


class Rotation(Block):
    """Rotate by a uniform angle in [-degrees, degrees]."""

    name: Literal["rotation"]
    degrees: Annotated[float, Field(ge=0, le=180)]


class Grayscale(Block):
    """Drop the colours, keeping three channels."""

    name: Literal["grayscale"]
    p: Probability = 0.1


class ColorJitter(Block):
    """Scale brightness, contrast and saturation by factors in [1-x, 1+x], and shift the hue by up to x."""

    name: Literal["color_jitter"]
    brightness: NonNegativeFloat = 0.0
    contrast: NonNegativeFloat = 0.0
    saturation: NonNegativeFloat = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class RandAugment(Block):
    """timm's RandAugment, by its policy string."""

    name: Literal["rand_augment"]
    policy: Annotated[str, Field(pattern=r"^rand(-[a-z]+[0-9.]+)*$")] = "rand-m7-mstd0.5-inc1"


Augmentation = Annotated[
    RandomCrop | RandomResizedCrop | HorizontalFlip | Rotation | Grayscale | ColorJitter | RandAugment,
    Field(discriminator="name"),
]


class Mix(Block):
    """Mixup and cutmix, one of them a batch; targets become soft."""

    mixup: NonNegativeFloat = Field(0.0, description="alpha of mixup; 0 is off")
    cutmix: NonNegativeFloat = Field(0.0, description="alpha of cutmix; 0 is off")
    p: Probability = Field(1.0, description="share of batches that are mixed")
    switch: Probability = Field(0.5, description="share of cutmix when both are on")

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        if not self.mixup and not self.cutmix:
            raise ValueError("give `mixup`, `cutmix` or both an alpha above 0")
        return self


class Statistics(Block):
    """Per-channel mean and standard deviation (RGB, pixels in [0, 1])."""

    mean: Triple
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class Preprocess(Block):
    """How an image reaches the network: resize the short side, cut the centre square, normalise."""

    size: PositiveInt = Field(description="side of the network's input, in pixels")
    resize: PositiveInt | None = Field(None, description="short side before the centre crop; default: `size`")
    interpolation: Interpolation = "bilinear"
    normalize: Literal["dataset", "imagenet", "none"] | Statistics = Field(
        "dataset", description="dataset: mean and std of the training images; imagenet; none; or {mean, std}"
    )


class Recipe(Block):
    """How a network is trained. Batch and learning rate are global: neither is scaled by the number of devices."""

    epochs: PositiveInt
    batch: PositiveInt = Field(description="images in one optimizer step, over all devices")
    optimizer: Optimizer
    schedule: Schedule
    preprocess: Preprocess
    augment: tuple[Augmentation, ...] = ()
    mix: Mix | None = None
    repeats: PositiveInt = Field(1, description="repeated augmentation: times each image occurs in an epoch it is in")
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] = "32-true"
    channels_last: bool = False
    clip_norm: PositiveFloat | None = Field(None, description="largest gradient norm of one step")
    ema: Ema | None = None
    sync_batchnorm: bool = Field(False, description="batch statistics over all devices")
    drop_last: bool = Field(True, description="leave out the last, smaller batch of an epoch")
    selection: Literal["last", "best"] = Field("last", description="which epoch's weights the run ends with")
    deterministic: bool = Field(True, description="bit-reproducible kernels; false is a little faster on GPUs")


# --- objectives --------------------------------------------------------------------------------------------------


class TermOptions(Block):
    """What every term of an objective has: its weight in the sum, and what it must be shown."""

    needs_teacher: ClassVar[bool] = False
    needs_stages: ClassVar[bool] = False  # feature maps at the ends of the networks' stages
    needs_vector: ClassVar[bool] = False  # what enters the student's last linear layer

    weight: NonNegativeFloat = 1.0


class CrossEntropyOptions(TermOptions):
    """Cross-entropy with the labels."""

    label_smoothing: Probability = 0.0


class KDOptions(TermOptions):
    """Hinton's distillation: T^2 KL(teacher || student) of the softened probabilities."""

    needs_teacher: ClassVar[bool] = True

    temperature: PositiveFloat = 4.0


class StageOptions(TermOptions):
    """What MGD and Overhaul share: a distance at the end of every stage, before the activation."""

    needs_teacher: ClassVar[bool] = True
    needs_stages: ClassVar[bool] = True

    ignore: tuple[NonNegativeInt, ...] = Field((), description="stages without a loss, counted from 0")
    normalize: Literal["reference", "mean"] = Field(
        "reference", description="reference: sum / batch / loss_factor; mean: mean over channels and pixels"
    )
    loss_factor: PositiveFloat = Field(1e4, description="divides the reference's sum; made for 224 x 224 images")


class MGDOptions(StageOptions):
    """Matching Guided Distillation: student channels learn from the teacher channels matched to them."""

    reducer: Literal["amp", "rd", "sm", "sp"] = Field("amp", description="how matched teacher channels become one")
    update_every: PositiveInt = Field(2, description="epochs between two matchings")
    update_images: PositiveInt = Field(20_480, description="training images that a matching looks at")
    compat: Literal["fixed", "reference"] = "fixed"


class BAKEOptions(TermOptions):
    """Batch Knowledge Ensembling: images of a batch teach each other."""

    needs_vector: ClassVar[bool] = True

    omega: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="how much of a target comes from the others")
    temperature: PositiveFloat = 4.0
    partners: NonNegativeInt = Field(1, description="images of the same class that join each image in its batch")
    ensemble: Literal["global", "local"] = Field("global", description="over the images of all devices, or each alone")


class OverhaulOptions(StageOptions):
    """Overhaul: the student's features, widened by a connector, match the teacher's where these are active."""


class Objective(Block):
    """The loss of a run: a weighted sum of named terms. One field a term; its options are its keys."""

    ce: CrossEntropyOptions | None = None
    kd: KDOptions | None = None
    mgd: MGDOptions | None = None
    bake: BAKEOptions | None = None
    overhaul: OverhaulOptions | None = None

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not self.terms():
            raise ValueError("an objective needs at least one term")
        return self

    def terms(self) -> dict[str, TermOptions]:
        """The terms that are present, by name, in the order of the fields."""
        return {name: options for name in type(self).model_fields if (options := getattr(self, name)) is not None}


# --- experiments -------------------------------------------------------------------------------------------------


class Run(Block):
    """One line under `runs:`. Any key of a recipe may stand here too and overrides it."""

    model: str = Field(description="cifar_*, or any timm or torchvision name")
    model_args: dict[str, bool | int | float | str] = {}
    recipe: Name | None = Field(None, description="recipes/<recipe>.yaml to train by")
    weights: str | None = Field(None, description="import instead of training: a file, torchvision:TAG or timm:TAG")
    teacher: Name | None = Field(None, description="another run of this experiment; its first seed teaches")
    teacher_norm: Literal["eval", "batch"] | None = Field(
        None,
        description="the teacher's batch norms: running or batch statistics; default batch for overhaul, else eval",
    )
    objective: Objective = Objective(ce=CrossEntropyOptions())
    seeds: Seeds | None = Field(None, description="instead of the experiment's seeds")


Column = Literal[
    "top1", "top5", "error1", "error5", "nll", "ece", "agreement", "params", "macs", "size", "latency", "throughput"
]


class Grid(Block):
    """Runs by two settings, as temperature down and label smoothing across."""

    corner: str = Field("", description="what the settings are, above the first column")
    across: tuple[str, ...] = Field(description="headings of the columns")
    down: dict[str, tuple[Name | None, ...]] = Field(description="heading of a row: its runs, null where there is none")

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        for heading, runs in self.down.items():
            if len(runs) != len(self.across):
                raise ValueError(f"row {heading!r} has {len(runs)} runs for {len(self.across)} columns")
        return self

    def runs(self) -> tuple[str, ...]:
        """Every run in it, once."""
        return tuple(dict.fromkeys(run for row in self.down.values() for run in row if run is not None))


class Table(Block):
    """One table of the page: a row a run and a column a metric, or a grid of runs with the metrics in each cell."""

    title: str | None = None
    rows: tuple[Name, ...] = Field((), description="runs, one a row")
    grid: Grid | None = Field(None, description="instead of rows")
    columns: tuple[Column, ...]

    @model_validator(mode="after")
    def _rows_or_grid(self) -> Self:
        if bool(self.rows) == (self.grid is not None):
            raise ValueError("a table needs either `rows` or a `grid`")
        return self

    def runs(self) -> tuple[str, ...]:
        """The runs it shows."""
        return self.grid.runs() if self.grid is not None else self.rows


class Experiment(Block):
    """One page of tables: a data set, the runs on it, and the tables over them."""

    dataset: Name
    seeds: Seeds = (0,)
    runs: dict[Name, Run]
    tables: dict[Name, Table] = {}
