"""RKD: relational knowledge distillation (Park et al., CVPR 2019).

B batch, D features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term

# Numbers that one piece of the angles, of B^3 in all, may hold; beyond, pieces are computed again for their gradients.
PIECE = 2**24
# Numbers of one slice of the directions on a CPU, where no gradient needs them all: its cache holds so many.
SLICE = 2**20


@full_precision
def rkd_loss(student: Tensor, teacher: Tensor, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """``distance`` x the distances' loss + ``angle`` x the angles', a scalar; the arguments of these two."""
    return distance * rkd_distance_loss(student, teacher) + angle * rkd_angle_loss(student, teacher)


@full_precision
def rkd_distance_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B x B of the Huber loss between the networks' distances of images, a scalar.

    Distances are divided by the mean of those above zero; the student's gradient passes through that mean.

    Args:
        student: embeddings (B, D).
        teacher: embeddings, (B, another D); detached.
    """
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher.detach()))


def _relative_distances(embedding_BD: Tensor) -> Tensor:
    # Distances do not see a shift, but the expanded square loses fewer digits around zero.
    centred_BD = embedding_BD - embedding_BD.mean(dim=0)
    square_B = centred_BD.square().sum(dim=1)
    square_BB = square_B[:, None] + square_B[None, :] - 2 * centred_BD @ centred_BD.T
    others_BB = 1 - torch.eye(len(square_B), dtype=square_BB.dtype, device=square_BB.device)
    distance_BB = square_BB.clamp_min(1e-12).sqrt() * others_BB
    above_zero = (distance_BB > 0).sum().clamp_min(1)
    # A batch of one image has no distance.
    mean = distance_BB.sum() / above_zero
    return distance_BB / mean if len(square_B) > 1 else distance_BB


@full_precision
def rkd_angle_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B x B x B of the Huber loss between the networks' cosines of angles, a scalar.

    The cosine of images i, j, k is that of the directions from i to j and from i to k.

    Args:
        student: embeddings (B, D).
        teacher: embeddings, (B, another D); detached.
    """
    batch = len(student)
    rows = max(PIECE // (batch * (batch + student.shape[1] + teacher.shape[1])), 1)
    starts = range(0, batch, rows)
    if len(starts) == 1:
        return _angle_sum(student, teacher.detach(), 0, batch) / batch**3
    pieces = [
        checkpoint(_angle_sum, student, teacher.detach(), start, rows, use_reentrant=False, preserve_rng_state=False)
        for start in starts
    ]
    return torch.stack(pieces).sum() / batch**3


def _angle_sum(student_BD: Tensor, teacher_BD: Tensor, start: int, rows: int) -> Tensor:
    """The sum over the angles at images ``start`` to ``start + rows``."""
    return F.smooth_l1_loss(_cosines(student_BD, start, rows), _cosines(teacher_BD, start, rows), reduction="sum")


def _cosines(embedding_BD: Tensor, start: int, rows: int) -> Tensor:
    rows = min(rows, len(embedding_BD) - start)
    if embedding_BD.requires_grad or not embedding_BD.is_cpu:
        differences = embedding_BD[None, :, :] - embedding_BD[start : start + rows, None, :]
        unit = differences / _lengths(differences)
    else:
        unit = embedding_BD.new_empty(rows, *embedding_BD.shape)
        few = max(SLICE // embedding_BD.numel(), 1)
        for first in range(0, rows, few):
            part = unit[first : first + few]
            at_RD = embedding_BD[start + first :][: len(part)]
            torch.sub(embedding_BD[None, :, :], at_RD[:, None, :], out=part)
            part.div_(_lengths(part))
    return unit @ unit.transpose(1, 2)


def _lengths(differences: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(differences, dim=2, keepdim=True)
    # Images with one embedding have no direction between them, and give none a gradient.
    found: Tensor = length.clamp_min(1e-12).where(length > 0, torch.inf)
    return found


class RKD(Term):
    """The term ``rkd``: the student's embeddings have the distances and angles of the teacher's, up to scale.

    Relations are those of a process's own images, as in the original.
    """

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance, self.angle = distance, angle

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum of both losses."""
        return rkd_loss(*inputs.embeddings(), self.distance, self.angle)
