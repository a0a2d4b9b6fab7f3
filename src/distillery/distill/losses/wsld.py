"""WSLD: weighted soft labels (Zhou et al., ICLR 2021).

B batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm, hard_labels
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs

EPS = 1e-7


@full_precision
def wsld_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor = 2.0
) -> Tensor:
    """``-T^2 mean_B f sum_c p_t,c log p_s,c`` with ``p = softmax(z / T)``, a scalar: cross-entropy, not a divergence.

    An image counts by ``f = 1 - exp(-CE_s / (CE_t + 1e-7))``, without gradient: less where the student, by its
    cross-entropy with the label at temperature 1, is already surer than the teacher.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        labels: class indices (B,).
        temperature: T > 0.
    """
    teacher_logits = teacher_logits.detach()
    ours_B, theirs_B = (
        F.cross_entropy(logits_BC, labels, reduction="none") for logits_BC in (student_logits.detach(), teacher_logits)
    )
    counts_B = -torch.expm1(-ours_B / (theirs_B + EPS))
    probability_BC = F.softmax(teacher_logits / temperature, dim=1)
    soft_B = -(probability_BC * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1)
    return temperature**2 * (counts_B * soft_B).mean()


class WSLD(LogitTerm):
    """The term ``wsld``; of soft targets, the largest is the label."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean."""
        return wsld_loss(*self.logits(inputs), hard_labels(inputs.target), self.temperature_at(inputs.epoch))
