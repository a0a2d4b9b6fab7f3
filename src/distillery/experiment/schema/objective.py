"""Every term that an objective may name: its options, what it needs to see, its hooks, and where its mathematics lies.

A new term is a file in distill/losses/, and here a class of options with its line in ``TERMS``. No torch is imported.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    Tag,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from distillery.errors import UserError, located
from distillery.experiment.plugins import load_plugin, own_terms
from distillery.experiment.schema.block import (
    Block,
    Count,
    Epochs,
    Fraction,
    Name,
    Neutral,
    NonNegative,
    Positive,
    Probability,
    Share,
)
from distillery.experiment.schema.recipe import Recipe

# What can be seen of a network. Per stage: "stages" (before the activation), "activations" (after it), "raw" (as the
# stage hands it on), "tokens", and "unpaired" (all stages of one network, whatever the other has); once: "logits",
# "last" (the map or grid of tokens that the embedding is made of), "averaged" (the map whose mean is the embedding),
# "embedding" (what enters the last linear layer), "classifier" (it).
Kind = Literal[
    "logits", "stages", "activations", "raw", "tokens", "unpaired", "last", "averaged", "embedding", "classifier"
]
STAGEWISE: frozenset[Kind] = frozenset({"stages", "activations", "raw", "tokens"})


@dataclass(frozen=True)
class Needs:
    """What a term asks for; nothing else is taken out of the networks or loaded.

    Attributes:
        student: kinds of the student's outputs.
        teacher: kinds of the teacher's; a term that names one needs a teacher.
        margins: the margins of the teacher's stages.
        indices: every image's position in the training set.
        view: a second augmentation of every image, seen by both networks.
        partner: another image of every image's class, which only the student sees, without gradient, as its view.
        labels: the images' labels; where a run may use few, the term is shown the labelled images alone.
        all_labels: the label of every training image, also of those that are not in the batch.
        unpooled: the maps at their own sizes, too, besides those pooled to a size that both networks share.
    """

    student: AbstractSet[Kind] = frozenset()
    teacher: AbstractSet[Kind] = frozenset()
    margins: bool = False
    indices: bool = False
    view: bool = False
    partner: bool = False
    labels: bool = False
    all_labels: bool = False
    unpooled: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """What both ask for together."""
        return Needs(
            self.student | other.student,
            self.teacher | other.teacher,
            self.margins or other.margins,
            self.indices or other.indices,
            self.view or other.view,
            self.partner or other.partner,
            self.labels or other.labels,
            self.all_labels or other.all_labels,
            self.unpooled or other.unpooled,
        )


class Sampling(NamedTuple):
    """An order of the training images that a term asks for, by its name among the data's orders."""

    order: str
    arguments: Mapping[str, int]


class ScheduledWeight(Block):
    """A weight that rises over a run's first epochs: value x min((epoch + 1) / warmup, 1), epochs counted from 0."""

    value: NonNegative = 1.0
    warmup: Epochs = Field(description="epochs until the weight is whole")
    from_zero: Annotated[bool, Neutral(False)] = Field(
        False, description="true: value x min(epoch / warmup, 1), so that the first epoch has none"
    )

    def at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        return self.value * min((epoch + (not self.from_zero)) / self.warmup, 1.0)


Temperature = Annotated[float, Field(gt=0, le=1000)]
Stage = Annotated[int, Field(ge=0, le=100)]


class LearnedTemperature(Block):
    """CTKD's: lowest + span x sigmoid(g), with g learned against the student: the gradient that it gets is reversed."""

    name: Literal["learned"]
    lowest: Temperature = 1.0
    span: Temperature = Field(20.0, description="how far above `lowest` it may rise")
    reversal: NonNegative = Field(1.0, description="factor of the reversed gradient, once whole")
    epochs: Epochs = Field(10, description="epochs over which the factor rises to that, by a cosine")


def _is_learned(temperature: Any) -> str:  # noqa: ANN401
    if isinstance(temperature, str):
        return "word" if temperature.isidentifier() else "number"
    return "learned" if isinstance(temperature, (Mapping, LearnedTemperature)) else "number"


# Of a term of logits: a number, the word `learned`, or that with its settings.
Softening = Annotated[
    Annotated[Temperature, Tag("number")]
    | Annotated[Literal["learned"], AfterValidator(lambda word: LearnedTemperature(name=word)), Tag("word")]
    | Annotated[LearnedTemperature, Tag("learned")],
    Discriminator(_is_learned),
]


def _is_schedule(weight: Any) -> str:  # noqa: ANN401
    return "schedule" if isinstance(weight, (Mapping, ScheduledWeight)) else "number"


Weight = Annotated[
    Annotated[NonNegative, Tag("number")] | Annotated[ScheduledWeight, Tag("schedule")],
    Discriminator(_is_schedule),
]


class TermOptions(Block):
    """What every term of an objective has: its options with their meaning, what it must be shown, and its hooks.

    ``numerics`` is raised by whoever changes what the term computes. ``implementation`` is ``module:class``; the class
    takes the options, without the weight, as keyword arguments. ``head``, likewise, is the class of the parts that the
    term deploys with the student.
    """

    needs: ClassVar[Needs] = Needs()
    numerics: ClassVar[int | None] = 1
    implementation: ClassVar[str]
    head: ClassVar[str | None] = None
    default_teacher_norm: ClassVar[Literal["eval", "batch"]] = "eval"
    # A term that wants indices looks at single images, unless it only draws by them.
    draws_by_index: ClassVar[bool] = False
    # Whether a term of the teacher's logits can compare some of the classes alone, where the teacher knows only these.
    takes_some_classes: ClassVar[bool] = False
    # The options that weigh the parts of the term, where it is a sum: one of them must be above 0.
    part_weights: ClassVar[tuple[str, ...]] = ()
    # The option that weighs the shares of the classes other than an image's label, of which there must be two then.
    weighs_others: ClassVar[str | None] = None
    # Whether what it computes depends on how many epochs there are in all.
    counts_epochs: ClassVar[bool] = False

    weight: Weight = 1.0
    teacher: Annotated[Name | None, Neutral(None)] = Field(
        None, description="of several teachers, the run that this term learns from; by default from their mean"
    )

    @model_validator(mode="after")
    def _some_part(self) -> Self:
        if self.part_weights and not any(getattr(self, part) for part in self.part_weights):
            names = " or ".join(f"`{part}`" for part in self.part_weights)
            raise ValueError(f"give {names} a weight above 0, or the term would teach nothing")
        return self

    def weight_at(self, epoch: int) -> float:
        """The weight in an epoch, counted from 0."""
        if isinstance(self.weight, ScheduledWeight):
            return self.weight.at(epoch)
        return self.weight

    def check(self, recipe: Recipe) -> None:
        """Check that the term goes with a recipe.

        Raises:
            UserError: it does not; the line begins with the recipe's key.
        """

    def check_classes(self, classes: int) -> None:
        """Check that the term can tell so many classes apart.

        Raises:
            UserError: it cannot; the line begins with the option at fault.
        """
        weight = getattr(self, self.weighs_others) if self.weighs_others else 0
        if weight and classes < 3:
            raise UserError(
                f"{self.weighs_others}: {weight:g} weighs the shares of the classes that are not an image's label, "
                f"which have no meaning with {classes} classes in all; write `{self.weighs_others}: 0`"
            )

    def sampling(self) -> Sampling | None:
        """The order of images that the term needs, or None if any will do."""
        return None

    def passes(self) -> int:
        """How often an epoch of the term's order shows each image."""
        return 1

    def rehearsal_batch(self, batch: int) -> int:
        """The batch, at least ``batch`` / 2 images, with which a rehearsal tries the term."""
        return batch

    def memory(self, images: int, classes: int) -> int:
        """How many bytes the term remembers about so many training images, in each process and each checkpoint."""
        return 0

    def variant(self) -> str:
        """Names this use of the term, where a rehearsal should try several."""
        return ""


class CrossEntropyOptions(TermOptions):
    """Cross-entropy with the labels."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.cross_entropy:CrossEntropy"

    label_smoothing: Share = 0.0


class LogitOptions(TermOptions):
    """What the terms that compare two networks' logits share."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"})
    takes_some_classes: ClassVar[bool] = True

    standardize: Annotated[bool, Neutral(False)] = Field(
        False, description="compare logits of mean 0 and deviation 1 over each image's classes"
    )

    def check_classes(self, classes: int) -> None:
        """Of two standardised logits, all that is left is which is larger."""
        super().check_classes(classes)
        if self.standardize and classes < 3:
            raise UserError(
                f"standardize: with {classes} classes the standardised logits of every image are the same two numbers; "
                "remove this key"
            )


class KDOptions(LogitOptions):
    """Hinton's distillation: T^2 KL(teacher || student) of the softened probabilities."""

    implementation: ClassVar[str] = "distillery.distill.losses.kd:KD"

    temperature: Softening = 4.0


class DKDOptions(LogitOptions):
    """Decoupled distillation: of the label's probability, and of the other classes among themselves."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.dkd:DKD"
    part_weights: ClassVar[tuple[str, ...]] = ("alpha", "beta")
    weighs_others: ClassVar[str | None] = "beta"

    temperature: Softening = 4.0
    alpha: NonNegative = Field(1.0, description="weight of the label's probability")
    beta: NonNegative = Field(8.0, description="weight of the other classes")


class NKDOptions(LogitOptions):
    """Normalised distillation: DKD's halves as cross-entropies, the label's weighted by the teacher."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.nkd:NKD"
    weighs_others: ClassVar[str | None] = "gamma"

    temperature: Softening = Field(1.0, description="of the other classes; the label's probability has none")
    gamma: NonNegative = Field(1.5, description="weight of the other classes")


class DISTOptions(LogitOptions):
    """Distillation from a stronger teacher: probabilities correlate as the teacher's do, in an image and in a class."""

    implementation: ClassVar[str] = "distillery.distill.losses.dist:DIST"
    part_weights: ClassVar[tuple[str, ...]] = ("beta", "gamma")

    temperature: Softening = 1.0
    beta: NonNegative = Field(1.0, description="weight of the relations between an image's classes")
    gamma: NonNegative = Field(1.0, description="weight of those within a class, over a batch's images")


class WTTMOptions(LogitOptions):
    """Weighted transformed teacher matching: the student, at temperature 1, learns a power of the teacher's answer."""

    implementation: ClassVar[str] = "distillery.distill.losses.wttm:WTTM"

    gamma: Temperature = Field(0.1, description="the exponent; 1 / gamma would be the teacher's temperature")
    weighted: bool = Field(True, description="images count more where the teacher is unsure; false is TTM")


class WSLDOptions(LogitOptions):
    """Weighted soft labels: an image counts less where the student is surer than the teacher."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.wsld:WSLD"

    temperature: Softening = 2.0


class USKDOptions(TermOptions):
    """Universal self-distillation: targets that the student makes for itself, one by a layer on a middle stage."""

    needs: ClassVar[Needs] = Needs(student={"logits", "activations"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.uskd:USKD"
    part_weights: ClassVar[tuple[str, ...]] = ("alpha", "beta", "mu")
    weighs_others: ClassVar[str | None] = "beta"

    alpha: NonNegative = Field(1.0, description="weight of the label")
    beta: NonNegative = Field(0.1, description="weight of the other classes")
    mu: NonNegative = Field(0.005, description="weight of the middle stage's own answer")
    stage: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="which stage, counted from 0; the one before the last if not given"
    )
    compat: Literal["fixed", "reference"] = Field(
        "fixed", description="reference: rank the other classes by log-probabilities, as the original does by mistake"
    )


class HardLabelOptions(LogitOptions):
    """Hard-label distillation: cross-entropy with the class that the teacher gives an image."""

    implementation: ClassVar[str] = "distillery.distill.losses.hard_label:HardLabel"

    label_smoothing: Share = 0.0


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


class BAKEOptions(TermOptions):
    """Batch Knowledge Ensembling: images of a batch are each other's teachers."""

    needs: ClassVar[Needs] = Needs(student={"logits", "embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.bake:BAKE"

    omega: Share = Field(0.5, description="how much of a target comes from the others")
    temperature: Temperature = 4.0
    partners: Annotated[int, Field(ge=0, le=1000)] = Field(
        1, description="images of the same class that join each image in its batch"
    )
    ensemble: Literal["global", "local"] = Field("global", description="over the images of all devices, or each alone")

    def check(self, recipe: Recipe) -> None:
        """Partners share their anchor's batch and are the only repetitions."""
        if self.partners == 0:
            return
        group = self.partners + 1
        if recipe.batch % group:
            raise UserError(f"batch: {recipe.batch} is no multiple of {group}, an image and its {group - 1} partners")
        if recipe.repeats > 1:
            raise UserError(f"repeats: {recipe.repeats} cannot go with BAKE's partners; set repeats: 1 or partners: 0")

    def sampling(self) -> Sampling | None:
        """Anchors, each followed by its partners."""
        return Sampling("partners", {"partners": self.partners}) if self.partners else None

    def passes(self) -> int:
        """As an anchor, and as often again as others have it for a partner, in the mean."""
        return self.partners + 1

    def rehearsal_batch(self, batch: int) -> int:
        """Half as many anchors, with their partners."""
        return batch // 2 * (self.partners + 1)


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


class RKDOptions(TermOptions):
    """Relational knowledge distillation: the student's embeddings lie to each other as the teacher's do."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.rkd:RKD"
    part_weights: ClassVar[tuple[str, ...]] = ("distance", "angle")

    distance: NonNegative = Field(25.0, description="weight of the distances between two images")
    angle: NonNegative = Field(50.0, description="weight of the angles between three")


class PKTOptions(TermOptions):
    """Probabilistic knowledge transfer: the student's embeddings are as similar to each other as the teacher's."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.pkt:PKT"


class CCOptions(TermOptions):
    """Correlation congruence: both networks' embeddings agree, weighed by how neighbours in the batch do."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.cc:CC"

    features: Annotated[int, Field(ge=1, le=65_536)] = Field(128, description="width of the embedded images")


class SRDOptions(TermOptions):
    """Simple recipe distillation: embeddings, projected and normalised over the batch, meet in a logarithm."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.srd:SRD"

    exponent: Annotated[float, Field(ge=1, le=16)] = Field(4.0, description="of the differences that are added up")


class CRDOptions(TermOptions):
    """Contrastive representation distillation: an image's two embeddings are told apart from those of others."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"}, indices=True)
    implementation: ClassVar[str] = "distillery.distill.losses.crd:CRD"

    negatives: Annotated[int, Field(ge=1, le=10**6)] = Field(
        16_384, description="images not known to be of its class that each image is compared with"
    )
    temperature: Annotated[float, Field(ge=0.012, le=1000)] = Field(
        0.07, description="below 0.012, scores overflow float32"
    )
    features: Annotated[int, Field(ge=1, le=65_536)] = Field(128, description="width of the embedded images")
    momentum: Share = Field(0.5, description="share of its old row that a memory keeps")

    def memory(self, images: int, classes: int) -> int:
        """Two memories of an embedded image each."""
        return 2 * 4 * images * self.features


class SimilarityOptions(TermOptions):
    """Similarities without labels: an image is as like those of a queue as the teacher's embeddings are."""

    needs: ClassVar[Needs] = Needs(student={"embedding"}, teacher={"embedding"})
    implementation: ClassVar[str] = "distillery.distill.losses.similarity:Similarity"

    temperature: Temperature = 0.07
    queue: Count | None = Field(
        None, description="the teacher's latest embeddings; by default, a quarter to half of the images, up to 8,192"
    )
    gather: bool = Field(False, description="one queue of all devices' rows; false: one of its own for each device")


class SimilarityLocalOptions(TermOptions):
    """Similarities within an image: each pixel of the last map is as like the others as the teacher's pixels are."""

    needs: ClassVar[Needs] = Needs(student={"last"}, teacher={"last"})
    implementation: ClassVar[str] = "distillery.distill.losses.similarity:SimilarityLocal"

    temperature: Temperature = 0.07


class MLKDOptions(LogitOptions):
    """Multi-level logit distillation: labels and predictions of two views, relations of classes and of images."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, teacher={"logits"}, view=True, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.mlkd:MLKD"
    takes_some_classes: ClassVar[bool] = False  # the second view has all
    part_weights: ClassVar[tuple[str, ...]] = ("ce", "kd")

    ce: NonNegative = Field(0.1, description="weight of the labels, of both views")
    kd: NonNegative = Field(0.9, description="weight of the teacher's predictions and relations")
    temperature: Softening = Field(4.0, description="beside 3, 5, 2 and 6")
    # Not neutral: this term's digests have always held the key.
    standardize: bool = Field(False, description="standardise the logits of the predictions, not of the relations")
    compat: Literal["fixed", "reference"] = Field(
        "reference",
        description="reference: as in the original's code, masks of images and classes act as factors, the weak view "
        "stands for the strong one at the temperatures 2 and 6, and strong views have no relations",
    )


class PSKDOptions(TermOptions):
    """Progressive self-knowledge distillation, in place of `ce`: labels softened by what was predicted before."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, indices=True, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.pskd:PSKD"
    counts_epochs: ClassVar[bool] = True

    alpha: Probability = Field(0.8, description="the past's share in the last epoch; it rises from 0 linearly")

    def memory(self, images: int, classes: int) -> int:
        """The last prediction for each image."""
        return 4 * images * classes


class CSKDOptions(TermOptions):
    """Class-wise self-knowledge distillation: an image is answered as another one of its class is."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, partner=True, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.cskd:CSKD"

    temperature: Temperature = 4.0


class TfKDOptions(TermOptions):
    """Teacher-free distillation: a rule for the label stands in for a teacher."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.tfkd:TfKD"

    correct: Fraction = Field(0.99, description="probability of the label; the other classes share the rest")
    temperature: Temperature = Field(20.0, description="of that rule; the student's is 1")


class SimKDOptions(TermOptions):
    """SimKD: the student's map, projected, meets the one that the teacher's classifier averages; both are deployed."""

    needs: ClassVar[Needs] = Needs(student={"averaged"}, teacher={"averaged", "classifier"})
    implementation: ClassVar[str] = "distillery.distill.losses.simkd:SimKD"
    head: ClassVar[str | None] = "distillery.distill.losses.simkd:SimKDHead"

    factor: Annotated[int, Field(ge=1, le=64)] = Field(2, description="divides the projector's width")
    rectify: bool = Field(True, description="end the projector in a ReLU; false for teachers whose map has no ReLU")


class CATOptions(TermOptions):
    """CAT-KD: the networks' class activation maps."""

    needs: ClassVar[Needs] = Needs(student={"averaged", "classifier"}, teacher={"averaged", "classifier"})
    implementation: ClassVar[str] = "distillery.distill.losses.cat:CAT"
    head: ClassVar[str | None] = "distillery.distill.losses.cat:CATHead"

    resolution: Annotated[int, Field(ge=1, le=64)] = Field(2, description="side to which the maps are pooled")
    normalize: bool = Field(False, description="divide each map by its norm")
    binarize: bool = Field(False, description="of the teacher's maps, only where they are above their mean size")
    compat: Literal["reference", "fixed"] = Field(
        "reference",
        description="reference: as in the original, the student's last layer has no bias; fixed: it stays as it is",
    )


class SRRLOptions(TermOptions):
    """SRRL: the student's features, in the teacher's width, and what the teacher's classifier makes of them."""

    needs: ClassVar[Needs] = Needs(student={"averaged"}, teacher={"logits", "embedding", "classifier"})
    implementation: ClassVar[str] = "distillery.distill.losses.srrl:SRRL"

    regression: NonNegative = Field(1.0, description="weight of the logits beside the features")
    rectify: bool = Field(True, description="end the connector in a ReLU; false for teachers whose features have none")


Exponent = Annotated[float, Field(gt=0, le=10)]


class OFAOptions(LogitOptions):
    """OFA-KD: the student's logits and logits of each of its stages learn from the teacher's, label stressed."""

    needs: ClassVar[Needs] = Needs(student={"logits", "unpaired"}, teacher={"logits", "embedding"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.ofa:OFA"
    takes_some_classes: ClassVar[bool] = False  # the logits of stages are of all

    eps: Exponent | Annotated[tuple[Exponent, ...], Field(min_length=2, max_length=5)] = Field(
        1.0, description="exponent that stresses the label; or one for each stage and, last, for the logits"
    )
    temperature: Softening = 1.0
    stages: Annotated[tuple[Annotated[int, Field(ge=0, le=3)], ...], Field(max_length=4)] | None = Field(
        None, description="stages that have logits, counted from 0; all by default"
    )
    heads: Annotated[int, Field(ge=1, le=64)] = Field(4, description="of the attention over a transformer's tokens")

    @model_validator(mode="after")
    def _stages_differ(self) -> Self:
        if self.stages is not None and len(set(self.stages)) < len(self.stages):
            raise ValueError(f"stages: {list(self.stages)} names a stage twice")
        return self


TERMS: Mapping[str, type[TermOptions]] = MappingProxyType(
    {
        "ce": CrossEntropyOptions,
        "kd": KDOptions,
        "dkd": DKDOptions,
        "nkd": NKDOptions,
        "dist": DISTOptions,
        "wttm": WTTMOptions,
        "wsld": WSLDOptions,
        "uskd": USKDOptions,
        "hard_label": HardLabelOptions,
        "mgd": MGDOptions,
        "bake": BAKEOptions,
        "overhaul": OverhaulOptions,
        "rkd": RKDOptions,
        "pkt": PKTOptions,
        "cc": CCOptions,
        "srd": SRDOptions,
        "crd": CRDOptions,
        "similarity": SimilarityOptions,
        "similarity_local": SimilarityLocalOptions,
        "mlkd": MLKDOptions,
        "pskd": PSKDOptions,
        "cskd": CSKDOptions,
        "tfkd": TfKDOptions,
        "fitnet": FitNetOptions,
        "at": ATOptions,
        "nst": NSTOptions,
        "vid": VIDOptions,
        "sp": SPOptions,
        "ickd": ICKDOptions,
        "reviewkd": ReviewKDOptions,
        "masked_generative": MaskedGenerativeOptions,
        "simkd": SimKDOptions,
        "cat": CATOptions,
        "srrl": SRRLOptions,
        "ofa": OFAOptions,
    }
)


@lru_cache(maxsize=64)
def _widened(objective: type[Any], own: tuple[tuple[str, type[TermOptions]], ...]) -> Any:  # noqa: ANN401
    fields: dict[str, Any] = {name: (options | None, None) for name, options in own}
    return create_model("Objective", __base__=objective, __module__=__name__, **fields)


class _WeightedSum(Block):
    """What an objective can do, whatever terms there are."""

    @model_validator(mode="wrap")
    @classmethod
    def _with_own_terms(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:  # noqa: ANN401
        """Give the class a field more for each term of a plugin that is named."""
        named = [name for name in data if name not in cls.model_fields] if isinstance(data, Mapping) else []
        try:
            own = tuple((name, term_options(name)) for name in named if name in own_terms())
        except UserError as error:
            raise PydanticCustomError("plugin", "{said}", {"said": str(error)}) from None
        return _widened(cls, own).model_validate(data) if own else handler(data)

    @model_validator(mode="after")
    def _has_terms(self) -> Self:
        if not self.terms():
            raise ValueError("an objective needs at least one term")
        if not any(
            term.weight if not isinstance(term.weight, ScheduledWeight) else term.weight.value
            for term in self.terms().values()
        ):
            raise ValueError("every weight is 0, so nothing would be trained; give one term a weight above 0")
        return self

    def terms(self) -> dict[str, TermOptions]:
        """The terms that are present, by name, in the order of ``TERMS``."""
        return {name: options for name in type(self).model_fields if (options := getattr(self, name)) is not None}

    def needs(self) -> Needs:
        """What all terms together ask for."""
        needs = Needs()
        for options in self.terms().values():
            needs |= options.needs
        return needs

    def of_teacher(self, teacher: str) -> Self:
        """The terms that learn from this teacher, or from none, as they are where it is the only one."""
        others = {
            name: None
            for name, options in self.terms().items()
            if options.needs.teacher and options.teacher not in (None, teacher)
        }
        own = {
            name: options.model_copy(update={"teacher": None})
            for name, options in self.terms().items()
            if options.teacher == teacher
        }
        return self.model_copy(update=others | own)

    def heads(self) -> list[str]:
        """The names of the terms that may deploy parts with the student."""
        return [name for name, term in self.terms().items() if term.head is not None]

    def default_teacher_norm(self) -> Literal["eval", "batch"]:
        """``batch`` where a term wants it, else ``eval``."""
        return "batch" if any(term.default_teacher_norm == "batch" for term in self.terms().values()) else "eval"

    def sampling(self) -> Sampling | None:
        """The order of images that a term asks for."""
        return next((found for term in self.terms().values() if (found := term.sampling()) is not None), None)

    def check_terms(self) -> None:
        """Check that every term goes with the others.

        Raises:
            UserError: two do not.
        """
        orders = {name: found for name, term in self.terms().items() if (found := term.sampling()) is not None}
        if len(set(map(repr, orders.values()))) > 1:
            raise UserError(
                f"objective: {' and '.join(orders)} each want an order of images of their own; leave one out"
            )
        heads = self.heads()
        if len(heads) > 1:
            raise UserError(f"objective: {' and '.join(heads)} each replace the student's last layer; leave one out")
        views = [
            next((name for name, term in self.terms().items() if getattr(term.needs, kind)), None)
            for kind in ("view", "partner")
        ]
        if all(views):
            raise UserError(
                f"objective: {' and '.join(map(str, views))} each want a second image of their own; leave one out"
            )

    def check(self, recipe: Recipe) -> None:
        """Check that every term goes with a recipe, and with the others.

        Raises:
            UserError: one does not; the line begins with the key at fault.
        """
        self.check_terms()
        # A weight that changes rises: it is largest in the last epoch.
        if not any(term.weight_at(recipe.total_epochs - 1) for term in self.terms().values()):
            raise UserError(
                "objective: every weight is 0 to the last epoch, so nothing would be trained; shorten a warm-up"
            )
        if recipe.augment_view is not None and not self.needs().view:
            raise UserError("augment_view: no term of the objective compares two views of an image; remove this key")
        for name, term in self.terms().items():
            single = (term.needs.indices and not term.draws_by_index) or term.needs.partner
            if single and recipe.mix is not None:
                raise UserError(
                    f"mix: {name} looks at single images and cannot learn from mixed ones; write `mix: null`"
                )
            term.check(recipe)

    def check_classes(self, classes: int) -> None:
        """Check that every term can tell so many classes apart.

        Raises:
            UserError: one cannot; the line begins with the key at fault.
        """
        for name, term in self.terms().items():
            with located(f"objective.{name}"):
                term.check_classes(classes)


if TYPE_CHECKING:

    class Objective(_WeightedSum):
        """The loss of a run: a weighted sum of named terms, one field a term."""

else:
    _fields: dict[str, Any] = {name: (options | None, None) for name, options in TERMS.items()}
    Objective = create_model(
        "Objective",
        __base__=_WeightedSum,
        __module__=__name__,
        __doc__="The loss of a run: a weighted sum of named terms. One field a term; its options are its keys.",
        **_fields,
    )


def term_options(name: str) -> type[TermOptions]:
    """The options of a term of that name, Distillery's or a plugin's.

    Raises:
        UserError: its plugin is no good.
    """
    if name in TERMS:
        return TERMS[name]
    where = own_terms()[name]
    options = load_plugin(where)
    if not (isinstance(options, type) and issubclass(options, TermOptions)):
        raise UserError(f"{where}: the options of the term {name!r} must be a class made from TermOptions")
    if not isinstance(implementation := getattr(options, "implementation", None), str):
        raise UserError(f'{where}: has no `implementation`; write implementation: ClassVar[str] = "plugins.FILE:CLASS"')
    load_plugin(implementation)
    return options


# What a run learns by unless it says otherwise: cross-entropy with the labels.
PLAIN = Objective.model_validate({"ce": {}})


def terms_with_teacher() -> list[str]:
    """The names of the terms that learn from a teacher."""
    return [name for name, options in TERMS.items() if options.needs.teacher]


def terms_without_logits() -> list[str]:
    """The names of the terms that learn from a teacher's features alone."""
    return [name for name in terms_with_teacher() if not TERMS[name].needs.teacher & {"logits", "classifier"}]
