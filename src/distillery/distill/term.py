"""The contract of an objective's terms.

B batch, C classes, D features, S/T student/teacher channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from distillery.distill.collective import Collective
from distillery.distill.precision import at_least_float32


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch of images.

    ``stages`` holds a feature map (B, channels, H, W) for the end of each paired stage, before its activation.
    ``embedding_BD`` is what entered the last linear layer. Both are there only for objectives that ask for them.
    """

    logits_BC: Tensor
    stages: tuple[Tensor, ...] = ()
    embedding_BD: Tensor | None = None

    def widened(self) -> "Outputs":
        """The same in float32 at least."""
        embedding_BD = None if self.embedding_BD is None else at_least_float32(self.embedding_BD)
        return Outputs(at_least_float32(self.logits_BC), tuple(map(at_least_float32, self.stages)), embedding_BD)


@dataclass(frozen=True)
class StepInputs:
    """All that a term may look at in one training step.

    ``target`` holds class indices, shape (B,), or soft targets, shape (B, C). ``teacher`` carries no gradient.
    ``batch_fraction`` is the size of the step's global batch over the nominal one: below 1 for an epoch's last batch.
    """

    student: Outputs
    target: Tensor
    teacher: Outputs | None = None
    batch_fraction: float = 1.0

    def widened(self) -> "StepInputs":
        """The same in float32 at least."""
        teacher = None if self.teacher is None else self.teacher.widened()
        return StepInputs(self.student.widened(), self.target, teacher, self.batch_fraction)


@dataclass(frozen=True)
class StagePair:
    """One stage as a term meets it: the channels of both networks, and the teacher's margins if it has any."""

    student_channels: int
    teacher_channels: int
    teacher_margin: Tensor | None


@dataclass(frozen=True)
class TermContext:
    """What a term is told about the run before training begins."""

    stages: tuple[StagePair, ...] = ()
    collective: Collective = field(default_factory=Collective)


# Asked for at most so many training images, it gives them as inputs: prepared as for evaluation, both networks in
# evaluation mode, shared out over the ranks.
CalibrationBatches = Callable[[int], Iterable[StepInputs]]


class Term(nn.Module, ABC):
    """One summand of an objective.

    A term is a module, so that what it trains and remembers is optimised, moved, wrapped by DDP and checkpointed with
    the student. It knows tensors only: no files, no processes, no configuration.
    """

    def setup(self, context: TermContext) -> None:
        """Build what depends on the run's networks; called once, before the optimizer is built."""

    @abstractmethod
    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the term's value, a scalar: the mean over the batch.

        Terms are called outside autocast with float32 tensors at least, so none has to mind the network's precision.
        """

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Act before an epoch's first step, on calibration batches where they are needed."""
