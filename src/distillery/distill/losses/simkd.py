"""SimKD: the student answers through the teacher's classifier (Chen et al., CVPR 2022).

B batch, C classes, S/T features of the student's and the teacher's embedding, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillery.distill.last_layer import weight_and_bias
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext
from distillery.errors import UserError
from distillery.models.composite import Head
from distillery.models.taps import Features, match_size


@full_precision
def simkd_loss(projected: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all entries of the squared difference of both maps, a scalar.

    Args:
        projected: the student's map as the projector made it, (B, T, H, W).
        teacher: the map that the teacher's classifier averages, (B, T, H', W'); pooled to H x W where it is larger;
            detached.
    """
    return (projected - match_size(teacher.detach(), _size(projected))).square().mean()


def _size(map_BCHW: Tensor) -> tuple[int, int]:
    return map_BCHW.shape[2], map_BCHW.shape[3]


class SimKDHead(Head):
    """The projector and the teacher's classifier, which are deployed with the student.

    The student's map, pooled to the teacher's ``size`` where it is larger, goes through 1 x 1, 3 x 3 and 1 x 1
    convolutions without bias, each with a batch norm and a ReLU, between which there are ``teacher_features // factor``
    channels. The classifier takes the mean of the result and is not trained.
    """

    kinds = frozenset({"averaged"})

    def __init__(
        self,
        student_features: int,
        teacher_features: int,
        classes: int,
        size: Sequence[int],
        factor: int,
        rectify: bool,
        bias: bool,
    ) -> None:
        super().__init__(
            student_features=student_features,
            teacher_features=teacher_features,
            classes=classes,
            size=list(size),
            factor=factor,
            rectify=rectify,
            bias=bias,
        )
        self.size = size
        width = teacher_features // factor
        self.transfer = nn.Sequential(
            *_convolution(student_features, width, 1),
            *_convolution(width, width, 3),
            *_convolution(width, teacher_features, 1)[: 3 if rectify else 2],
        )
        self.classifier = nn.Linear(teacher_features, classes, bias=bias).requires_grad_(False)

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C) and the projected map (B, T, H, W)."""
        student = features.averaged
        assert student is not None
        height, width = _size(student)
        projected = self.transfer(match_size(student, (min(height, self.size[0]), min(width, self.size[1]))))
        return self.classifier(projected.mean(dim=(2, 3))), projected


def _convolution(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class SimKD(Term):
    """The term ``simkd``: the student's last map, projected, meets the teacher's.

    The student is deployed with the projector and the teacher's classifier: its logits come from there.
    """

    def __init__(self, factor: int = 2, rectify: bool = True) -> None:
        super().__init__()
        self.factor, self.rectify = factor, rectify

    def head(self, context: TermContext) -> SimKDHead:
        """Make the projector, and copy the teacher's classifier."""
        if self.factor > context.teacher_features:
            raise UserError(
                f"objective.simkd.factor: {self.factor} leaves the projector no channel, for the teacher's classifier "
                f"takes {context.teacher_features} features"
            )
        weight, bias = weight_and_bias(context.teacher_classifier, "objective.simkd: the teacher")
        head = SimKDHead(
            context.student_features,
            context.teacher_features,
            len(weight),
            context.teacher_map_size,
            self.factor,
            self.rectify,
            bias is not None,
        )
        with torch.no_grad():
            head.classifier.weight.copy_(weight)
            if bias is not None:
                head.classifier.bias.copy_(bias)
        return head

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean squared difference."""
        assert inputs.teacher is not None
        projected, teacher = inputs.student.head, inputs.teacher.averaged
        assert projected is not None
        assert teacher is not None
        return simkd_loss(projected, teacher)
