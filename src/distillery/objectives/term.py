"""The contract of an objective's terms.

B batch, C classes, D features, S/T student/teacher channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from distillery.objectives.collective import Collective
from distillery.objectives.precision import at_least_float32


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch of images.

    ``stages`` holds a feature map (B, channels, H, W) for the end of each paired stage, before its activation.
    ``vector_BD`` is what entered the last linear layer. Both are there only for objectives that ask for them.
    """

    logits_BC: Tensor
    stages: tuple[Tensor, ...] = ()
    vector_BD: Tensor | None = None

    def widened(self) -> "Outputs":
        """The same in float32 at least."""
        vector_BD = None if self.vector_BD is None else at_least_float32(self.vector_BD)
        return Outputs(at_least_float32(self.logits_BC), tuple(map(at_least_float32, self.stages)), vector_BD)


@dataclass(frozen=True)
class Lesson:
    """All that a term may look at in one training step.

    ``target`` holds class indices, shape (B,), or soft targets, shape (B, C). ``teacher`` carries no gradient.
    ``fullness`` is the size of the step's global batch over the nominal one: below 1 for an epoch's last, small batch.
    """

    student: Outputs
    target: Tensor
    teacher: Outputs | None = None
    fullness: float = 1.0

    def widened(self) -> "Lesson":
        """The same in float32 at least."""
        teacher = None if self.teacher is None else self.teacher.widened()
        return Lesson(self.student.widened(), self.target, teacher, self.fullness)


@dataclass(frozen=True)
class StagePair:
    """One stage as a term meets it: the channels of both networks, and the teacher's margins if it has any."""

    student_channels: int
    teacher_channels: int
    teacher_margin: Tensor | None


@dataclass(frozen=True)
class Setting:
    """What a term is told about the run before training begins."""

    stages: tuple[StagePair, ...] = ()
    collective: Collective = field(default_factory=Collective)


# Asked for at most so many training images, a survey shows them as lessons: as they are evaluated, both networks in
# evaluation mode, shared out over the ranks.
Survey = Callable[[int], Iterable[Lesson]]


class Term(nn.Module, ABC):
    """One summand of an objective.

    A term is a module, so that what it trains and remembers is optimised, moved, wrapped by DDP and checkpointed with
    the student. It knows tensors only: no files, no processes, no configuration.
    """

    def settle(self, setting: Setting) -> None:
        """Build what depends on the run's networks; called once, before the optimizer is built."""

    @abstractmethod
    def forward(self, lesson: Lesson) -> Tensor:
        """Return the term's value, a scalar: the mean over the batch.

        Terms are called outside autocast with float32 tensors at least, so none has to mind the network's precision.
        """

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Act before an epoch's first step, from a survey of at most so many training images where one is needed."""
