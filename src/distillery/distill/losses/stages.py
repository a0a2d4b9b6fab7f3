"""What terms do alike at the ends of the networks' stages.

B batch, H W pixels.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.partial_l2 import stage_weights
from distillery.distill.step import StepInputs
from distillery.distill.term import StagePair, Term, TermContext
from distillery.errors import UserError
from distillery.experiment.stages import distilled_stages
from distillery.models.taps import match_size


def margin_or_relu(pair: StagePair) -> Tensor:
    """The margins of a stage's teacher channels, (1, T, 1, 1); zero, as of a ReLU, where no norm feeds them."""
    if pair.teacher_margin is None:
        return torch.zeros(1, pair.teacher_channels, 1, 1)
    return pair.teacher_margin


def meet(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two networks' maps at the smaller height and the smaller width of both: averages of the larger one's pixels."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return match_size(student, size), match_size(teacher, size)


def unit(rows: Tensor) -> Tensor:
    """Rows (..., D) at length 1; those of zero stay, and give no gradient."""
    empty = (rows.detach() == 0).all(dim=-1, keepdim=True)
    return F.normalize(rows.masked_fill(empty, 0), dim=-1)


def check_normalizable(feature: Tensor, module: nn.Module, term: str) -> None:
    """Check that a batch norm of a term has statistics.

    Raises:
        UserError: there is one number a channel.
    """
    if module.training and len(feature) * feature[0, 0].numel() == 1:
        raise UserError(
            f"objective.{term}: a batch of one image gives one number a channel, which no batch norm can normalise; "
            "raise `batch`, or set `drop_last: true`"
        )


class EveryStage(Term):
    """A term that is a sum over the stages, of the maps of one kind there."""

    name: ClassVar[str]
    kind: ClassVar[Literal["raw", "stages"]] = "raw"

    def __init__(self, ignore: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.ignore = frozenset(ignore)
        self.stages: list[int] = []

    def setup(self, context: TermContext) -> None:
        """Find the stages that have a loss."""
        self.stages = distilled_stages(len(context.stages), self.ignore, self.name)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum over the stages."""
        assert inputs.teacher is not None
        maps = list(zip(getattr(inputs.student, self.kind), getattr(inputs.teacher, self.kind), strict=True))
        return torch.stack([self.distance(stage, *maps[stage]) for stage in self.stages]).sum()

    @abstractmethod
    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's loss, a scalar."""


class MarginStages(EveryStage):
    """What MGD and Overhaul share: maps before the activation, and the margins of the teacher's."""

    kind = "stages"

    def __init__(
        self,
        ignore: tuple[int, ...] = (),
        normalize: Literal["reference", "mean"] = "reference",
        loss_factor: float = 1e4,
    ) -> None:
        super().__init__(ignore)
        self.normalize, self.loss_factor = normalize, loss_factor
        self.weights: list[float] = []

    def setup(self, context: TermContext) -> None:
        """Keep each stage's weight and margin."""
        super().setup(context)
        self.weights = stage_weights(len(context.stages))
        for stage in self.stages:
            self.register_buffer(f"margin{stage}", margin_or_relu(context.stages[stage]), persistent=False)
