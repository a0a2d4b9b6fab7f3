"""The contract of an objective's terms.

B batch, C classes, D features.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """What a network gave for one batch of images."""

    logits_BC: Tensor


@dataclass(frozen=True)
class Lesson:
    """All that a term may look at in one training step.

    ``target`` holds class indices, shape (B,), or soft targets, shape (B, C). ``teacher`` carries no gradient.
    """

    student: Outputs
    target: Tensor
    teacher: Outputs | None = None


class Term(nn.Module, ABC):
    """One summand of an objective.

    A term is a module, so that what it trains and remembers is optimised, moved, wrapped by DDP and checkpointed with
    the student. It knows tensors only: no files, no processes, no configuration.
    """

    @abstractmethod
    def forward(self, lesson: Lesson) -> Tensor:
        """Return the term's value: a float32 scalar, the mean over the batch."""

    def begin_epoch(self, epoch: int) -> None:
        """Act before an epoch's first step; most terms have nothing to do."""
