"""SP: similarity-preserving distillation (Tung, Mori, ICCV 2019).

B batch, S/T student/teacher channels, H W pixels.
"""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from distillery.distill.losses.stages import unit
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term


@full_precision
def sp_loss(student: Tensor, teacher: Tensor, compat: Literal["fixed", "reference"] = "fixed") -> Tensor:
    """``sum (G_t - G_s)^2 / B^2``, a scalar: a mean over pairs of images.

    ``G`` holds the products of the flattened maps of all pairs, every row at length 1 (as RepDistiller
    ``distiller_zoo/SP.py``, which returns shape (1,)).

    Args:
        student: a map, (B, S, H, W), or rows, (B, S).
        teacher: likewise, of any channels and pixels; detached.
        compat: ``reference`` gives images whose student's map is all zero a gradient of 1e11 and more, as the original
            does; ``fixed`` gives them none.
    """
    difference_BB = _similarities(teacher.detach(), compat) - _similarities(student, compat)
    return difference_BB.square().mean()


def _similarities(feature: Tensor, compat: str) -> Tensor:
    rows = feature.flatten(1)
    if compat == "reference":
        return F.normalize(rows @ rows.T, dim=1)
    rows = rows.masked_fill((rows.detach() == 0).all(dim=1, keepdim=True), 0)
    return unit(rows @ rows.T)


class SP(Term):
    """The term ``sp``: the last maps of two images are as alike as the teacher's.

    Similarities are those of a process's own images, as in the original.
    """

    def __init__(self, compat: Literal["fixed", "reference"] = "fixed") -> None:
        super().__init__()
        self.compat = compat

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over pairs of images."""
        assert inputs.teacher is not None
        return sp_loss(inputs.student.unpooled.raw[-1], inputs.teacher.unpooled.raw[-1], self.compat)
