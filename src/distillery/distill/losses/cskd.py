"""CS-KD: class-wise self-knowledge distillation (Yun et al., CVPR 2020).

B batch, C classes.
"""

from torch import Tensor

from distillery.distill.losses.kd import kd_loss
from distillery.distill.step import StepInputs
from distillery.distill.term import Term


def cskd_loss(logits: Tensor, partner_logits: Tensor, temperature: float) -> Tensor:
    """``T^2`` times the batch mean of ``KL(softmax(z' / T) || softmax(z / T))``, a scalar (cs-kd, train.py).

    It is distillation with another image of the class as the teacher: the cross-entropy beside it is a term of its own.

    Args:
        logits: z, (B, C).
        partner_logits: z', the same network's for another image of each image's class, (B, C); detached.
        temperature: T > 0, on both sides.
    """
    return kd_loss(logits, partner_logits, temperature)


class CSKD(Term):
    """The term ``cskd``: an image is answered as another one of its class is."""

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean; the partners are the second view."""
        assert inputs.view is not None
        return cskd_loss(inputs.student.logits_BC, inputs.view.student.logits_BC, self.temperature)
