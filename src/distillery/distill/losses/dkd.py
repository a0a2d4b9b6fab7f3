"""DKD: decoupled knowledge distillation (Zhao et al., CVPR 2022).

B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm, hard_labels, non_target_log_softmax, target_log_shares
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs


@full_precision
def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """``alpha`` x the target class's part + ``beta`` x the other classes', a scalar; see ``dkd_parts``."""
    target, others = dkd_parts(student_logits, teacher_logits, labels, temperature)
    return alpha * target + beta * others


@full_precision
def dkd_parts(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """The two halves into which the distillation of probabilities falls, scalars: TCKD and NCKD.

    With ``b = (p_y, 1 - p_y)`` and ``q`` the softmax over the C - 1 classes other than y, all of ``z / T``,

        T^2 mean_B KL(b_t || b_s)    and    T^2 mean_B KL(q_t || q_s).

    ``KL(p_t || p_s)`` is the first plus ``1 - p_t,y`` times the second. All probabilities are differences of
    log-sum-exps, so that none is rounded to 0 or 1; the original takes the logarithm of such.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        labels: y, class indices (B,).
        temperature: T > 0.
    """
    student_BC, teacher_BC = student_logits / temperature, teacher_logits.detach() / temperature
    parts = [
        F.kl_div(logarithms(student_BC, labels), logarithms(teacher_BC, labels), reduction="batchmean", log_target=True)
        for logarithms in (target_log_shares, non_target_log_softmax)
    ]
    return temperature**2 * parts[0], temperature**2 * parts[1]


class DKD(LogitTerm):
    """The term ``dkd``; of soft targets, the largest is the target class."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum of both parts."""
        labels_B = hard_labels(inputs.target)
        return dkd_loss(*self.logits(inputs), labels_B, self.temperature_at(inputs.epoch), **self.options)
