"""Options of the terms that look at a network's last layer, or bring one."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from distillery.experiment.schema.block import NonNegative
from distillery.experiment.schema.objective.term import LogitOptions, Needs, Softening, TermOptions


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
