"""DIST: distillation from a stronger teacher (Huang et al., NeurIPS 2022).

B batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs

# Added to the product of the norms, not to each: where a class is likely for no image, it is not negligible.
EPS = 1e-8


@full_precision
def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """``beta`` x the inter-class loss + ``gamma`` x the intra-class loss, a scalar; see ``dist_parts``."""
    inter, intra = dist_parts(student_logits, teacher_logits, temperature)
    return beta * inter + gamma * intra


@full_precision
def dist_parts(student_logits: Tensor, teacher_logits: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Inter-class and intra-class loss, scalars: ``T^2`` x (1 - the mean correlation of the networks' probabilities).

    With ``P = softmax(z / T)``, Pearson's correlation is taken along each image's row, and along each class's column
    over the images of the batch.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        temperature: T > 0.
    """
    student_BC = F.softmax(student_logits / temperature, dim=1)
    teacher_BC = F.softmax(teacher_logits.detach() / temperature, dim=1)
    inter = 1 - _correlation(student_BC, teacher_BC).mean()
    intra = 1 - _correlation(student_BC.T, teacher_BC.T).mean()
    return temperature**2 * inter, temperature**2 * intra


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation along rows; of rows without variation 0, without gradient: it would be of size 1e8."""
    centred = [rows - rows.mean(dim=1, keepdim=True) for rows in (first, second)]
    lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in centred]
    correlation = (centred[0] * centred[1]).sum(dim=1) / (lengths[0] * lengths[1] + EPS)
    return torch.where((first != first[:, :1]).any(dim=1), correlation, 0.0)


class DIST(LogitTerm):
    """The term ``dist``. Classes are correlated over a process's own images, as in the original."""

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum of both parts."""
        return dist_loss(*self.logits(inputs), self.temperature_at(inputs.epoch), **self.options)
