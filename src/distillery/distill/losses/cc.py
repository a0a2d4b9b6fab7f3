"""CC: correlation congruence (Peng et al., ICCV 2019), as its authors' code computes it.

B batch, D features, E numbers of an embedded image.
"""

from torch import Tensor, nn

from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext


@full_precision
def cc_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over neighbours in the batch of ``<delta_i, delta_(i+1)>``, a scalar (RepDistiller, distiller_zoo/CC.py).

    ``delta_i`` is the absolute difference of the two networks' embeddings of image i. The paper compares matrices of
    correlations instead; the code that its authors gave does not. One image has no neighbour: 0.

    Args:
        student: embedded images (B, E).
        teacher: likewise (B, E); not detached, for its embedding is trained too.
    """
    delta_BE = (student - teacher).abs()
    return (delta_BE[:-1] * delta_BE[1:]).sum() / max(len(delta_BE) - 1, 1)


class CC(Term):
    """The term ``cc``: both networks' embeddings go through a linear layer each, trained with the student."""

    def __init__(self, features: int = 128) -> None:
        super().__init__()
        self.features = features

    def setup(self, context: TermContext) -> None:
        """Make the linear layers."""
        self.embed_s = nn.Linear(context.student_features, self.features)
        self.embed_t = nn.Linear(context.teacher_features, self.features)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over neighbours, which are those of a process's own images, in the batch's order."""
        student_BD, teacher_BD = inputs.embeddings()
        return cc_loss(self.embed_s(student_BD), self.embed_t(teacher_BD))
