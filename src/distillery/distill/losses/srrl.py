"""SRRL: knowledge distillation via softmax regression representation learning (Yang et al., ICLR 2021).

B batch, C classes, S/T features of the student's and the teacher's embedding, H W pixels.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.last_layer import weight_and_bias
from distillery.distill.losses.overhaul import connector
from distillery.distill.losses.stages import check_normalizable
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext


@full_precision
def srrl_feature_loss(connected: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B x T of the squared difference of the networks' features, a scalar.

    Args:
        connected: the student's, in the teacher's width, (B, T).
        teacher: what enters the teacher's last layer, (B, T); detached.
    """
    return F.mse_loss(connected, teacher.detach())


@full_precision
def srrl_regression_loss(connected: Tensor, weight: Tensor, bias: Tensor | None, teacher_logits: Tensor) -> Tensor:
    """Mean over B x C of the squared difference of what the teacher's last layer makes of both features, a scalar.

    Args:
        connected: the student's features in the teacher's width, (B, T).
        weight: of the teacher's last layer, (C, T); detached.
        bias: likewise, (C,), or None.
        teacher_logits: (B, C); detached.
    """
    logits_BC = F.linear(connected, weight.detach(), None if bias is None else bias.detach())
    return F.mse_loss(logits_BC, teacher_logits.detach())


@full_precision
def srrl_loss(
    connected: Tensor,
    teacher: Tensor,
    teacher_logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    regression: float = 1.0,
) -> Tensor:
    """``srrl_feature_loss + regression * srrl_regression_loss``, a scalar; the arguments of these two."""
    features = srrl_feature_loss(connected, teacher)
    return features + regression * srrl_regression_loss(connected, weight, bias, teacher_logits)


class SRRL(Term):
    """The term ``srrl``: the student's map, connected to the teacher's width, has its mean and its logits.

    The connector is a 1 x 1 convolution without bias, drawn from N(0, 2 / T), a batch norm and a ReLU; it is trained
    with the student and used for nothing else.
    """

    def __init__(self, regression: float = 1.0, rectify: bool = True) -> None:
        super().__init__()
        self.regression, self.rectify = regression, rectify
        self.classifier: list[nn.Module | None] = []

    def setup(self, context: TermContext) -> None:
        """Make the connector, and keep the teacher's last layer."""
        self.classifier = [context.teacher_classifier]
        weight_and_bias(context.teacher_classifier, "objective.srrl: the teacher")
        self.connector = connector(context.student_features, context.teacher_features)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum of both losses."""
        teacher, student = inputs.teacher, inputs.student.averaged
        assert teacher is not None
        assert teacher.embedding_BD is not None
        assert student is not None
        weight, bias = weight_and_bias(self.classifier[0], "objective.srrl")
        return srrl_loss(
            self.connected(student), teacher.embedding_BD, teacher.logits_BC, weight, bias, self.regression
        )

    def connected(self, student_BSHW: Tensor) -> Tensor:
        """The student's features in the teacher's width, (B, T)."""
        check_normalizable(student_BSHW, self, "srrl")
        connected = self.connector(student_BSHW)
        return (F.relu(connected) if self.rectify else connected).mean(dim=(2, 3))
