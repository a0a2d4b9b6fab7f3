"""Hard-label distillation (Touvron et al., ICML 2021).

B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs


@full_precision
def hard_label_loss(student_logits: Tensor, teacher_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Batch mean of the cross-entropy with the class that the teacher gives an image, the first largest; a scalar.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        label_smoothing: mass of that label spread over all classes, in [0, 1).
    """
    return F.cross_entropy(student_logits, teacher_logits.argmax(dim=1), label_smoothing=label_smoothing)


class HardLabel(LogitTerm):
    """The term ``hard_label``."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean."""
        return hard_label_loss(*self.logits(inputs), **self.options)
