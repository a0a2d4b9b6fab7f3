"""Options of the terms that look at logits."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from distillery.experiment.schema.block import NonNegative, Share
from distillery.experiment.schema.objective.term import LogitOptions, Needs, Softening, Temperature, TermOptions


class CrossEntropyOptions(TermOptions):
    """Cross-entropy with the labels."""

    needs: ClassVar[Needs] = Needs(student={"logits"}, labels=True)
    implementation: ClassVar[str] = "distillery.distill.losses.cross_entropy:CrossEntropy"

    label_smoothing: Share = 0.0


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
