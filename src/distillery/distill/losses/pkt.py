"""PKT: probabilistic knowledge transfer (Passalis, Tefas, ECCV 2018).

B batch, D features.
"""

import torch
from torch import Tensor

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term

EPS = 1e-7


@full_precision
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B x B of ``q log((q + eps) / (p + eps))``, a scalar (probabilistic_kt, nn/pkt.py; eps 1e-7).

    q (the teacher's) and p (the student's) are the similarities ``(1 + cosine) / 2`` of images i and j as shares of row
    i, the diagonal included. The paper writes the sum, B^2 times as much, which is why weights are in the thousands.

    Args:
        student: embeddings (B, D).
        teacher: embeddings (B, another D); detached.
    """
    share_s, share_t = _shares(student), _shares(teacher.detach())
    return (share_t * torch.log((share_t + EPS) / (share_s + EPS))).mean()


def _shares(embedding_BD: Tensor) -> Tensor:
    unit = embedding_BD / (torch.linalg.vector_norm(embedding_BD, dim=1, keepdim=True) + EPS)
    similarity: Tensor = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)


class PKT(Term):
    """The term ``pkt``: the student's embeddings are as similar to each other as the teacher's.

    Similarities are those of a process's own images, as in the original.
    """

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over pairs of images."""
        return pkt_loss(*inputs.embeddings())
