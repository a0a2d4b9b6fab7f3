"""NKD: normalised knowledge distillation (Yang et al., ICCV 2023).

B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm, hard_labels, non_target_log_softmax
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs


@full_precision
def nkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float | Tensor = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """The target class's part + ``gamma`` x the other classes', a scalar; see ``nkd_parts``."""
    target, others = nkd_parts(student_logits, teacher_logits, labels, temperature)
    return target + gamma * others


@full_precision
def nkd_parts(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the target class, weighted by the teacher, and of the other classes among themselves; scalars.

    With ``p = softmax(z)``, at temperature 1, and ``q`` the softmax of ``z / T`` over the C - 1 classes other than y,

        -mean_B p_t,y log p_s,y    and    -T^2 mean_B sum_c q_t,c log q_s,c.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        labels: y, class indices (B,).
        temperature: T > 0, of the second part.
    """
    teacher_logits = teacher_logits.detach()
    log_student_B, log_teacher_B = (
        F.log_softmax(logits_BC, dim=1).gather(1, labels[:, None])[:, 0]
        for logits_BC in (student_logits, teacher_logits)
    )
    student_BC, teacher_BC = (
        non_target_log_softmax(logits_BC / temperature, labels) for logits_BC in (student_logits, teacher_logits)
    )
    # The label's entry is 0 in both logarithms, and so in the product.
    others_B = (teacher_BC.exp() * student_BC).sum(dim=1)
    return -(log_teacher_B.exp() * log_student_B).mean(), -(temperature**2) * others_B.mean()


class NKD(LogitTerm):
    """The term ``nkd``; of soft targets, the largest is the target class, as in the original."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum of both parts."""
        labels_B = hard_labels(inputs.target)
        return nkd_loss(*self.logits(inputs), labels_B, self.temperature_at(inputs.epoch), **self.options)
