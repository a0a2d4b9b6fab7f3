"""What the terms that compare two networks' logits share: how logits may be seen, and what a target's class is.

B batch, C classes.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term

EPS = 1e-7


@full_precision
def standardized_logits(logits: Tensor) -> Tensor:
    """``(z - mean z) / (std z + 1e-7)`` over each image's classes, (B, C) (Sun et al., CVPR 2024).

    The deviation's divisor is C - 1; the gradient passes through mean and deviation. Where all logits of an image are
    equal, as those of a last layer of zeros, the result is 0 without gradient: it would be of size 1e7.

    Args:
        logits: (B, C), of three classes at least: of two, all images would be the same two numbers.
    """
    centred_BC = logits - logits.mean(dim=1, keepdim=True)
    differ = (logits != logits[:, :1]).any(dim=1, keepdim=True)
    return torch.where(differ, centred_BC / (logits.std(dim=1, keepdim=True) + EPS), 0.0)


def learned_temperature(parameter: Tensor, reversal: float = 1.0, lowest: float = 1.0, span: float = 20.0) -> Tensor:
    """``T = lowest + span sigmoid(g)``, of g's shape, learned against the student (CTKD: Li et al., AAAI 2023).

    Its value is that of the formula; the gradient that reaches g is multiplied by ``-reversal``, so that the optimizer
    that lowers the loss raises it by g.

    Args:
        parameter: g, of any shape.
        reversal: at least 0.
        lowest: the bound below.
        span: the bound above, less the bound below.
    """
    reversed_ = parameter.detach() - reversal * (parameter - parameter.detach())
    return lowest + span * torch.sigmoid(reversed_)


def reversal_at(epoch: float, reversal: float = 1.0, epochs: int = 10) -> float:
    """``reversal (1 - cos(pi min(e / epochs, 1))) / 2`` in the run's e-th epoch; ``epoch`` counts from 0, e from 1."""
    return reversal * (1 - math.cos(math.pi * min((int(epoch) + 1) / epochs, 1))) / 2


def hard_labels(target: Tensor) -> Tensor:
    """The class of each image, int64 (B,): of class indices (B,) themselves, of soft targets (B, C) the first largest.

    Args:
        target: class indices, or distributions as mixup and cutmix make them.
    """
    return target if target.ndim == 1 else target.argmax(dim=1)


@full_precision
def non_target_log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of the classes other than an image's label, among these alone, (B, C); the label's entry is 0.

    Args:
        logits: (B, C), divided by a temperature where one is wanted.
        labels: (B,), of the target classes.
    """
    target_BC = _is_target(logits, labels)
    return F.log_softmax(logits.masked_fill(target_BC, -torch.inf), dim=1).masked_fill(target_BC, 0.0)


@full_precision
def target_log_shares(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of an image's label and of all other classes together, (B, 2), finite however sure a network is.

    Args:
        logits: (B, C), divided by a temperature where one is wanted.
        labels: (B,), of the target classes.
    """
    others_B = logits.masked_fill(_is_target(logits, labels), -torch.inf).logsumexp(dim=1)
    target_B = logits.gather(1, labels[:, None])[:, 0]
    return torch.stack([target_B, others_B], dim=1) - logits.logsumexp(dim=1, keepdim=True)


def _is_target(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    return torch.arange(logits_BC.shape[1], device=logits_BC.device) == labels_B[:, None]


class LearnedTemperature(nn.Module):
    """CTKD's temperature: one number, trained with the student and decayed as the recipe has it."""

    def __init__(self, lowest: float, span: float, reversal: float, epochs: int) -> None:
        super().__init__()
        self.lowest, self.span, self.reversal, self.epochs = lowest, span, reversal, epochs
        self.parameter = nn.Parameter(torch.ones(1))

    def forward(self, epoch: float) -> Tensor:
        """T in an epoch, a scalar."""
        reversal = reversal_at(epoch, self.reversal, self.epochs)
        return learned_temperature(self.parameter, reversal, self.lowest, self.span).squeeze()


class LogitTerm(Term):
    """A term that compares the two networks' logits, standardised or at a learned temperature if so asked.

    Args:
        temperature: the number, or the arguments of ``LearnedTemperature``.
        standardize: show the term standardised logits of both networks.
        options: the others, which the term's function takes.
    """

    def __init__(
        self,
        temperature: float | Mapping[str, float] = 1.0,
        standardize: bool = False,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        self.standardize, self.options = standardize, options
        self.temperature: float | LearnedTemperature
        if isinstance(temperature, Mapping):
            lowest, span, reversal = (temperature[key] for key in ("lowest", "span", "reversal"))
            self.temperature = LearnedTemperature(lowest, span, reversal, int(temperature["epochs"]))
        else:
            self.temperature = temperature

    def logits(self, inputs: StepInputs) -> tuple[Tensor, Tensor]:
        """The student's and the teacher's logits (B, C)."""
        assert inputs.teacher is not None
        return self.seen(inputs.student.logits_BC), self.seen(inputs.teacher.logits_BC)

    def seen(self, logits_BC: Tensor) -> Tensor:
        """Logits as the term looks at them."""
        return standardized_logits(logits_BC) if self.standardize else logits_BC

    def temperature_at(self, epoch: float) -> float | Tensor:
        """T in an epoch; a learned one is a scalar with gradient."""
        return self.temperature(epoch) if isinstance(self.temperature, nn.Module) else self.temperature
