"""Options of the terms that relate images, or their views, to each other, and of those that have no teacher."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distillery.errors import UserError
from distillery.experiment.schema.block import Count, Fraction, NonNegative, Probability, Share
from distillery.experiment.schema.objective.term import (
    LogitOptions,
    Needs,
    Sampling,
    Softening,
    Temperature,
    TermOptions,
)
from distillery.experiment.schema.recipe import Recipe


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
