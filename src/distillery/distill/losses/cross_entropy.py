"""Cross-entropy with hard, smoothed or mixed labels.

B batch, C classes.
"""

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term


@full_precision
def cross_entropy_loss(logits_BC: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Batch mean of ``-sum_c y_c log softmax(z)_c``, a scalar.

    Smoothing by ``a`` replaces the target distribution ``y`` by ``(1 - a) y + a / C``: the share ``a / C`` falls on the
    true class too (Szegedy et al. 2016, eq. 4.5 ff.; the teachers of Chandrasegaran et al. 2022 are trained so).

    Args:
        logits_BC: the network's answers.
        target: class indices (B,), or distributions (B, C) as mixup and cutmix make them.
        label_smoothing: ``a``, in [0, 1].
    """
    return F.cross_entropy(logits_BC, target, label_smoothing=label_smoothing)


class CrossEntropy(Term):
    """The term ``ce``."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean."""
        return cross_entropy_loss(inputs.student.logits_BC, inputs.target, self.label_smoothing)
