"""The contract of an objective's terms.

A term's options, what it needs to see and its hooks stand in experiment/schema/objective/; what it computes, here.

B batch, C classes, S/T student/teacher channels, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from distillery.distill.collective import Collective
from distillery.distill.step import StepInputs
from distillery.models.composite import Head
from distillery.models.taps import TapPair, TapPoint


@dataclass(frozen=True)
class StagePair:
    """One stage as a term meets it.

    Attributes:
        student_channels: of the student's map, 0 if no term asks for its stages.
        teacher_channels: of the teacher's, likewise.
        teacher_margin: (1, T, 1, 1); None unless asked for, or where no batch norm feeds the stage.
        size: height and width at which both are compared.
        student_size: height and width of the student's map, which only ``unpooled`` has.
        teacher_size: of the teacher's, likewise.
    """

    student_channels: int
    teacher_channels: int
    teacher_margin: Tensor | None
    size: tuple[int, int] = (1, 1)
    student_size: tuple[int, int] = (1, 1)
    teacher_size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class OwnStage:
    """One stage of one network as it is, whatever the other network has.

    Attributes:
        channels: of its map or tokens.
        size: height and width of its map, or of the grid of its tokens.
        prefix_tokens: class and register tokens in front of the grid's; None for a map.
    """

    channels: int
    size: tuple[int, int]
    prefix_tokens: int | None = None


@dataclass(frozen=True)
class TermContext:
    """What a term knows of the run before training begins.

    A term that keeps one of the networks' layers holds it in a list: as a submodule it would be checkpointed twice.

    Attributes:
        stages: the paired stages.
        collective: all processes of the run.
        student_features: width of the student's embedding, 0 if no term asks for it.
        teacher_features: of the teacher's, likewise.
        student_classifier: the student's last linear layer, if asked for; trained with the student.
        teacher_classifier: the teacher's, frozen.
        student_stages: all of the student's stages, if asked for.
        student_last: the map that the student's embedding is made of; None if no term looks into the student.
        teacher_last: of the teacher, likewise.
        teacher_map_size: of the map that is averaged to the teacher's embedding; (1, 1) where there is none.
        labels: class of every training image; below 0 where the run may not know it.
        classes: how many classes there are.
        epochs: how many the run has.
        seed: the run's seed, for addressed draws.
    """

    stages: tuple[StagePair, ...] = ()
    collective: Collective = field(default_factory=Collective)
    student_features: int = 0
    teacher_features: int = 0
    student_classifier: nn.Module | None = None
    teacher_classifier: nn.Module | None = None
    student_stages: tuple[OwnStage, ...] = ()
    student_last: OwnStage | None = None
    teacher_last: OwnStage | None = None
    teacher_map_size: tuple[int, int] = (1, 1)
    labels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    classes: int = 0
    epochs: int = 1
    seed: int = 0


def pair_context(pair: TapPair, margins: Sequence[Tensor | None], run: TermContext) -> TermContext:
    """What a term knows of the run, with what two networks that are paired tell; the margins are the teacher's."""
    count, parties = len(pair.sizes), (pair.student, pair.teacher)
    channels = [[point.channels for point in party.points] or count * [0] for party in parties]
    own_sizes = [[(point.height, point.width) for point in party.points] or pair.sizes for party in parties]
    stages = zip(*channels, margins or count * [None], pair.sizes, *own_sizes, strict=True)
    return replace(
        run,
        stages=tuple(StagePair(*stage) for stage in stages),
        student_features=pair.student.features,
        teacher_features=pair.teacher.features,
        student_classifier=pair.student.classifier,
        teacher_classifier=pair.teacher.classifier,
        student_stages=tuple(
            OwnStage(
                point.channels, (point.height, point.width), point.prefix_tokens if point.layout == "BNC" else None
            )
            for point in pair.student.unpaired
        ),
        student_last=_whole_map(pair.student.last),
        teacher_last=_whole_map(pair.teacher.last),
        teacher_map_size=pair.teacher.averaged,
    )


def _whole_map(point: TapPoint | None) -> OwnStage | None:
    return None if point is None else OwnStage(point.channels, (point.height, point.width))


# Asked for at most so many training images, it gives them as inputs: prepared as for evaluation, both networks in
# evaluation mode, shared out over the ranks.
CalibrationBatches = Callable[[int], Iterable[StepInputs]]


class Term(nn.Module, ABC):
    """One summand of an objective.

    A term is a module, so that what it trains and remembers (parameters and buffers) is optimised, moved, wrapped by
    DDP and checkpointed with the student. It knows tensors only: no files, no processes, no configuration.

    ``own_buffers`` names buffers that the term itself keeps equal on all ranks, so that DDP need not send them.
    """

    own_buffers: ClassVar[tuple[str, ...]] = ()

    def setup(self, context: TermContext) -> None:
        """Build what depends on the run's networks and images; called once, before the optimizer is built."""

    def head(self, context: TermContext) -> Head | None:
        """Build parts that are deployed with the student and give its logits, or None; called after ``setup``.

        The options name the class, so that a finished run can be restored.
        """
        return None

    @abstractmethod
    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the term's value, a scalar: the mean over the batch.

        Terms are called outside autocast with float32 tensors at least, so none has to mind the network's precision.
        A step may call it several times, on one micro-batch each; what it remembers must not change before
        ``end_step``.
        """

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Act before an epoch's first step, on calibration batches where they are needed.

        A run that is stopped between here and that step calls it again, and must be none the worse for it.
        """

    def end_step(self) -> None:
        """Act after an optimizer step, whose micro-batches ``forward`` has seen: here a term updates its memory."""
