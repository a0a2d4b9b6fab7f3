"""What every term of an objective has: its options, what it needs to see, and its hooks. No torch is imported."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from distillery.errors import UserError
from distillery.experiment.schema.block import Block, Epochs, Name, Neutral, NonNegative
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
