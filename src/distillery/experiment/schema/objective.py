"""What an objective may say: the terms of the loss and their options."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from distillery.experiment.schema.block import Block, Probability


class TermOptions(Block):
    """What every term of an objective has: its weight in the sum, and what it must be shown."""

    numerics: ClassVar[int | None] = 1

    needs_teacher: ClassVar[bool] = False
    needs_stages: ClassVar[bool] = False  # feature maps at the ends of the networks' stages
    needs_embedding: ClassVar[bool] = False  # what enters the student's last linear layer

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

    needs_embedding: ClassVar[bool] = True

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
