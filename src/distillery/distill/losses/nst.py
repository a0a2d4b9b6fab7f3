"""NST: neuron selectivity transfer (Huang, Wang 2017), with the polynomial kernel.

B batch, S/T student/teacher channels, H W pixels, P = H x W.
"""

import torch
from torch import Tensor

from distillery.distill.losses.stages import EveryStage, meet, unit
from distillery.distill.precision import full_precision


@full_precision
def nst_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One stage's squared maximum mean discrepancy of the channels, a scalar; the method sums over the stages.

    With ``u`` the channels flattened over the pixels, at length 1, and ``k(a, b) = <a, b>^2``,

        mean k(u_t, u_t) + mean k(u_s, u_s) - 2 mean k(u_s, u_t)

    over batch and pairs of channels (as RepDistiller ``distiller_zoo/NST.py``, which holds all products of all pixels).

    Args:
        student: what the stage hands on, (B, S, H, W).
        teacher: likewise, (B, T, H, W); detached. Of two sizes, the larger map is pooled first.
    """
    student, teacher = meet(student, teacher.detach())
    student_BSP, teacher_BTP = unit(student.flatten(2)), unit(teacher.flatten(2))
    s, t, pixels = student_BSP.shape[1], teacher_BTP.shape[1], student_BSP.shape[2]
    if pixels * (s + t) <= s * s + t * t + s * t:
        # The sums of <a, b>^2 over pairs of channels are products of two networks' matrices of pixels.
        difference_BPP = student_BSP.mT @ student_BSP / s - teacher_BTP.mT @ teacher_BTP / t
        return difference_BPP.square().sum(dim=(1, 2)).mean()
    return _kernel(teacher_BTP, teacher_BTP) + _kernel(student_BSP, student_BSP) - 2 * _kernel(student_BSP, teacher_BTP)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b.mT).square().mean()


class NST(EveryStage):
    """The term ``nst``: a stage's channels, as patterns of pixels, are distributed as the teacher's."""

    name = "nst"

    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's loss."""
        return nst_loss(student, teacher)
