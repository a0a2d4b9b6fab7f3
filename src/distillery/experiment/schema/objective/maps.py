"""Options of the terms that compare two networks' maps."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillery.experiment.schema.block import Count, Epochs, NonNegative, Positive, Share
from distillery.experiment.schema.objective.term import Needs, TermOptions

Stage = Annotated[int, Field(ge=0, le=100)]


class EveryStageOptions(TermOptions):
    """What terms share that are a sum over the stages."""

    ignore: tuple[Stage, ...] = Field((), description="stages without a loss, counted from 0")


class StageOptions(EveryStageOptions):
    """What MGD and Overhaul share: a distance at the end of every stage, before the activation."""

    needs: ClassVar[Needs] = Needs(student={"stages"}, teacher={"stages"}, margins=True)

    normalize: Literal["reference", "mean"] = Field(
        "reference", description="reference: sum / batch / loss_factor; mean: mean over channels and pixels"
    )
    loss_factor: Positive = Field(1e4, description="divides the reference's sum; made for 224 x 224 images")


class MGDOptions(StageOptions):
    """Matching Guided Distillation: student channels learn from the teacher channels matched to them."""

    implementation: ClassVar[str] = "distillery.distill.losses.mgd:MGD"
    numerics = 2

    reducer: Literal["amp", "rd", "sm", "sp"] = Field("amp", description="how matched teacher channels become one")
    update_every: Epochs = Field(2, description="epochs between two matchings")
    update_images: Count = Field(20_480, description="training images that a matching looks at")
    compat: Literal["fixed", "reference"] = Field(
        "fixed",
        description="reference: as in the original, the last teacher channels by index are no candidates where the "
        "widths of a stage do not divide, and an epoch's last, smaller batch is divided by the full batch",
    )

    def variant(self) -> str:
        """Each reducer is a way of its own."""
        return self.reducer


class OverhaulOptions(StageOptions):
    """Overhaul: the student's features, widened by a connector, match the teacher's where these are active."""

    implementation: ClassVar[str] = "distillery.distill.losses.overhaul:Overhaul"
    default_teacher_norm: ClassVar[Literal["eval", "batch"]] = "batch"  # as its authors do; the others freeze them


class FitNetOptions(TermOptions):
    """FitNet hints: the student's map of one stage, through a regressor, is the teacher's."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"}, unpooled=True)
    implementation: ClassVar[str] = "distillery.distill.losses.fitnet:FitNet"

    stage: Stage = Field(1, description="the stage that is compared, counted from 0")
    compat: Literal["fixed", "reference"] = Field(
        "fixed",
        description="reference: as in the original, a student's map that is larger, but not twice as large, goes "
        "through a kernel as large as the difference; fixed: it is pooled",
    )


class ATOptions(EveryStageOptions):
    """Attention transfer: at every stage, the maps' energies lie where the teacher's do."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"})
    implementation: ClassVar[str] = "distillery.distill.losses.at:AT"

    power: Annotated[int, Field(ge=1, le=16)] = Field(2, description="of the features, whose mean is the attention")


class NSTOptions(EveryStageOptions):
    """Neuron selectivity transfer: at every stage, the channels are distributed as the teacher's."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"})
    implementation: ClassVar[str] = "distillery.distill.losses.nst:NST"


class VIDOptions(EveryStageOptions):
    """Variational information distillation: at every stage, the teacher's map is likely given the student's."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"})
    implementation: ClassVar[str] = "distillery.distill.losses.vid:VID"

    initial_variance: Positive = Field(5.0, description="of every teacher channel at first; it is learned")
    least_variance: Annotated[float, Field(ge=1e-12, le=1)] = Field(1e-5, description="what is added to a variance")

    @model_validator(mode="after")
    def _above_the_least(self) -> Self:
        if self.initial_variance <= self.least_variance:
            raise ValueError(
                f"initial_variance {self.initial_variance:g} must lie above least_variance {self.least_variance:g}"
            )
        return self


class SPOptions(TermOptions):
    """Similarity-preserving distillation: the last maps of two images are as alike as the teacher's."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"}, unpooled=True)
    implementation: ClassVar[str] = "distillery.distill.losses.sp:SP"

    compat: Literal["fixed", "reference"] = Field(
        "fixed", description="reference: as in the original, an image whose map is all zero has an immense gradient"
    )


class ICKDOptions(TermOptions):
    """Inter-channel correlation: two channels of the last map go together as the teacher's do."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"}, unpooled=True)
    implementation: ClassVar[str] = "distillery.distill.losses.ickd:ICKD"


class ReviewKDOptions(TermOptions):
    """ReviewKD: the student's maps, each fused with the deeper ones, are the teacher's before their activation."""

    needs: ClassVar[Needs] = Needs(
        student={"stages", "raw", "embedding"}, teacher={"stages", "embedding"}, unpooled=True
    )
    implementation: ClassVar[str] = "distillery.distill.losses.reviewkd:ReviewKD"

    mid_channels: Annotated[int, Field(ge=1, le=65_536)] | None = Field(
        None, description="width of the fused maps; by default min(512, width of the student's embedding)"
    )
    student: Literal["after", "before"] = Field(
        "after", description="the student's maps after their activation, as on CIFAR, or before it, as on ImageNet"
    )


class MaskedGenerativeOptions(TermOptions):
    """Masked generative distillation: the teacher's last map is generated from what a mask leaves of the student's."""

    needs: ClassVar[Needs] = Needs(student={"raw"}, teacher={"raw"}, indices=True)
    implementation: ClassVar[str] = "distillery.distill.losses.masked_generative:MaskedGenerative"
    part_weights: ClassVar[tuple[str, ...]] = ("alpha",)
    draws_by_index: ClassVar[bool] = True

    alpha: NonNegative = Field(7e-5, description="factor of the squared distance, a sum over channels and pixels")
    masked_share: Share = Field(0.15, description="of channels that are masked, independently in every image")
