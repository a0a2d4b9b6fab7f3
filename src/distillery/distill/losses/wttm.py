"""TTM and WTTM: transformed teacher matching, plain and weighted (Zheng and Yang, ICLR 2024).

B batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs


@full_precision
def wttm_loss(student_logits: Tensor, teacher_logits: Tensor, gamma: float = 0.1, weighted: bool = True) -> Tensor:
    """``mean_B U KL(q || softmax(z_s))``, a scalar; TTM has U = 1.

    ``q = softmax(gamma z_t)`` are the teacher's probabilities to the power gamma, normalised, and ``U`` is what they
    were divided by, ``sum_c softmax(z_t)_c^gamma``: more for images of which the teacher is less sure. The student
    has no temperature, and there is no factor ``T^2``.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        gamma: above 0; 1 / gamma would be the teacher's temperature.
        weighted: WTTM, else TTM.
    """
    teacher_logits = teacher_logits.detach()
    log_student_BC = F.log_softmax(student_logits, dim=1)
    log_teacher_BC = F.log_softmax(gamma * teacher_logits, dim=1)
    divergence_B = F.kl_div(log_student_BC, log_teacher_BC, reduction="none", log_target=True).sum(dim=1)
    if weighted:
        # Powers of small probabilities would underflow one by one.
        log_power_B = torch.logsumexp(gamma * teacher_logits, dim=1) - gamma * torch.logsumexp(teacher_logits, dim=1)
        divergence_B = log_power_B.exp() * divergence_B
    return divergence_B.mean()


class WTTM(LogitTerm):
    """The term ``wttm``."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean."""
        return wttm_loss(*self.logits(inputs), **self.options)
