"""SRD: a simple recipe, the role of the projector (Miles, Mikolajczyk, AAAI 2024).

B batch, S/T features of the student's and the teacher's embedding.
"""

import torch
from torch import Tensor, nn

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext

EPS = 1e-4

# Below this sum of differences, nothing is left to learn, and the logarithm would be infinite.
LEAST = 1e-30


@full_precision
def srd_loss(projected: Tensor, teacher: Tensor, exponent: float = 4.0) -> Tensor:
    """``log sum |s - t| ^ exponent`` over B x T, a scalar; s and t have mean 0 and variance 1 over the batch.

    As Simple-Recipe-Distillation ``imagenet/torchdistill/losses/single.py``, whose loss is twice this beside the labels
    and the teacher's answers at temperature 1.

    Args:
        projected: the student's embeddings in the teacher's width, (B, T).
        teacher: embeddings, (B, T); detached.
        exponent: above 0.
    """
    difference_BT = _normalised(projected) - _normalised(teacher.detach())
    return torch.log(difference_BT.abs().pow(exponent).sum().clamp_min(LEAST))


def _normalised(embedding_BT: Tensor) -> Tensor:
    centred_BT = embedding_BT - embedding_BT.mean(dim=0)
    return centred_BT * (centred_BT.square().mean(dim=0) + EPS).rsqrt()


class SRD(Term):
    """The term ``srd``: the student's embeddings, projected and normalised over the batch, are the teacher's.

    The projector is a linear layer to the teacher's width, trained with the student and used for nothing else.
    Statistics are those of a process's own images, as in the original.
    """

    def __init__(self, exponent: float = 4.0) -> None:
        super().__init__()
        self.exponent = exponent

    def setup(self, context: TermContext) -> None:
        """Make the projector; without a bias, which the mean over the batch would take away again."""
        self.projector = nn.Linear(context.student_features, context.teacher_features, bias=False)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the logarithm of the sum of differences."""
        assert inputs.teacher is not None
        student_BS, teacher_BT = inputs.student.embedding_BD, inputs.teacher.embedding_BD
        assert student_BS is not None
        assert teacher_BT is not None
        return srd_loss(self.projector(student_BS), teacher_BT, self.exponent)
