"""Tf-KD's virtual teacher: distillation from a rule instead of a network (Yuan et al., CVPR 2020).

B batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term


@full_precision
def tfkd_loss(logits: Tensor, labels: Tensor, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    """Mean over B x C of ``q (log q - log softmax(z))``, a scalar (Teacher-free-KD, my_loss_function.py).

    q is ``softmax(u / T)`` with u the virtual teacher's probabilities: ``correct`` for the label, the rest shared by
    the other classes. The original takes that softmax of probabilities, so q is nearly uniform; its mean is over
    classes too, C times smaller than a divergence.

    Args:
        logits: the student's, at temperature 1, (B, C).
        labels: class indices, (B,), or distributions (B, C), of which the largest entry is taken.
        correct: the virtual teacher's probability of the label, in (0, 1].
        temperature: T > 0, the virtual teacher's.
    """
    classes = logits.shape[1]
    labels_B = labels.argmax(dim=1) if labels.is_floating_point() else labels
    believed_BC = torch.full_like(logits, (1 - correct) / max(classes - 1, 1))
    believed_BC.scatter_(1, labels_B[:, None], correct)
    teacher_log_BC = F.log_softmax(believed_BC / temperature, dim=1)
    log_BC = F.log_softmax(logits, dim=1)
    return F.kl_div(log_BC, teacher_log_BC, reduction="batchmean", log_target=True) / classes


class TfKD(Term):
    """The term ``tfkd``."""

    def __init__(self, correct: float = 0.99, temperature: float = 20.0) -> None:
        super().__init__()
        self.correct, self.temperature = correct, temperature

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over images and classes."""
        return tfkd_loss(inputs.student.logits_BC, inputs.target, self.correct, self.temperature)
