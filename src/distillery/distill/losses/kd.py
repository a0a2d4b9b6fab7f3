"""Distillation of the teacher's softened probabilities.

B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs


@full_precision
def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """``T^2`` times the batch mean of ``KL(softmax(z_t / T) || softmax(z_s / T))``, a scalar (Hinton et al. 2015).

    The factor ``T^2`` keeps the gradient's size while the temperature varies; USI's form is the one at T = 1. The
    gradient with respect to the student's logits is ``T (softmax(z_s / T) - softmax(z_t / T)) / B``; the teacher gets
    none.

    Both sides stay logarithms until they are subtracted, so that probabilities too small for the number format cost
    nothing instead of making 0 x infinity.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: T > 0, on both sides; a scalar tensor gets its gradient, through T^2 too.
    """
    student_log_BC = F.log_softmax(student_logits / temperature, dim=1)
    teacher_log_BC = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    return temperature**2 * F.kl_div(student_log_BC, teacher_log_BC, reduction="batchmean", log_target=True)


class KD(LogitTerm):
    """The term ``kd``."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean."""
        return kd_loss(*self.logits(inputs), self.temperature_at(inputs.epoch))
