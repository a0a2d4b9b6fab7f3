"""CAT-KD: the student's class activation maps meet the teacher's (Guo et al., CVPR 2023).

B batch, C classes, D features, H W pixels. CAM: a network's averaged map times its last layer's weight, (B, C, H, W).
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.last_layer import weight_and_bias
from distillery.distill.losses.stages import unit
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext
from distillery.models.composite import Head
from distillery.models.taps import Features


@full_precision
def cat_loss(
    student: Tensor, teacher: Tensor, resolution: int = 2, normalize: bool = False, binarize: bool = False
) -> Tensor:
    """Mean over all entries of the squared difference of both networks' pooled class activation maps, a scalar.

    Args:
        student: CAMs (B, C, H, W).
        teacher: CAMs (B, C, another H, W); detached.
        resolution: both are pooled to ``resolution`` x ``resolution`` by adaptive averaging.
        normalize: divide every pooled map of an image and a class by its norm; a map of zeros stays so and gives no
            gradient.
        binarize: put 1 where the teacher's CAM is above its own mean absolute value and 0 elsewhere, before pooling.
    """
    teacher = teacher.detach()
    if binarize:
        teacher = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).to(teacher.dtype)
    pooled_s, pooled_t = (F.adaptive_avg_pool2d(cam, resolution).flatten(2) for cam in (student, teacher))
    if normalize:
        pooled_s, pooled_t = unit(pooled_s), unit(pooled_t)
    return F.mse_loss(pooled_s, pooled_t)


@full_precision
def class_activation_maps(averaged: Tensor, weight: Tensor) -> Tensor:
    """A last layer's weight (C, D) at every pixel of the map that it takes the mean of, (B, D, H, W): (B, C, H, W)."""
    return F.conv2d(averaged, weight[:, :, None, None])


class CATHead(Head):
    """A 1 x 1 convolution without bias, whose mean over the pixels are the logits; in place of the last layer."""

    kinds = frozenset({"averaged"})

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features=features, classes=classes)
        self.convolution = nn.Conv2d(features, classes, kernel_size=1, bias=False)
        nn.init.kaiming_normal_(self.convolution.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C) and the CAMs (B, C, H, W)."""
        cam_BCHW = self.convolution(features.averaged)
        return cam_BCHW.mean(dim=(2, 3)), cam_BCHW


class CAT(Term):
    """The term ``cat``: the distance of both networks' class activation maps.

    By ``compat: reference`` the student is built and deployed with a head without bias, as the original is; by
    ``fixed`` it keeps its own last layer.
    """

    def __init__(
        self,
        resolution: int = 2,
        normalize: bool = False,
        binarize: bool = False,
        compat: Literal["reference", "fixed"] = "reference",
    ) -> None:
        super().__init__()
        self.resolution, self.normalize, self.binarize, self.compat = resolution, normalize, binarize, compat
        self.classifiers: list[nn.Module | None] = []

    def setup(self, context: TermContext) -> None:
        """Keep both networks' last layers."""
        self.classifiers = [context.student_classifier, context.teacher_classifier]
        weight_and_bias(context.teacher_classifier, "objective.cat: the teacher")
        if self.compat == "fixed":
            weight_and_bias(context.student_classifier, "objective.cat: the student")

    def head(self, context: TermContext) -> CATHead | None:
        """Make the convolution that replaces the last layer."""
        return CATHead(context.student_features, context.classes) if self.compat == "reference" else None

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean squared difference."""
        assert inputs.teacher is not None
        student = inputs.student.head
        if self.compat == "fixed":
            student = self._cam(inputs.student.averaged, 0)
        assert student is not None
        teacher = self._cam(inputs.teacher.averaged, 1)
        return cat_loss(student, teacher, self.resolution, self.normalize, self.binarize)

    def _cam(self, averaged: Tensor | None, party: int) -> Tensor:
        assert averaged is not None
        return class_activation_maps(averaged, weight_and_bias(self.classifiers[party], "objective.cat")[0])
