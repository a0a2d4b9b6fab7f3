"""VID: variational information distillation (Ahn et al., CVPR 2019).

B batch, S/T student/teacher channels, H W pixels.
"""

import math

import torch
from torch import Tensor, nn

from distillery.distill.losses.stages import EveryStage, meet
from distillery.distill.precision import full_precision
from distillery.distill.term import TermContext


@full_precision
def vid_loss(predicted: Tensor, teacher: Tensor, log_scale: Tensor, least_variance: float = 1e-5) -> Tensor:
    """One stage's negative log-likelihood of the teacher's map, a scalar; the method sums over the stages.

    With a variance ``v = log(1 + exp(log_scale)) + least_variance`` a channel,

        1/2 mean((predicted - teacher)^2 / v + log v)

    over all entries (as RepDistiller ``distiller_zoo/VID.py``); it may be negative.

    Args:
        predicted: means made of the student's map, (B, T, H, W).
        teacher: what the stage hands on, (B, T, H, W); detached.
        log_scale: (T,), learned.
        least_variance: above 0.
    """
    variance = torch.logaddexp(log_scale, torch.zeros_like(log_scale)) + least_variance
    variance = variance.reshape(1, -1, 1, 1)
    return ((predicted - teacher.detach()).square() / variance + variance.log()).mean() / 2


class VID(EveryStage):
    """The term ``vid``: the teacher's map is likely under a Gaussian whose mean is made of the student's.

    The means come from three 1 x 1 convolutions with ReLUs between them, the variances are one number a channel; all
    are trained.
    """

    name = "vid"

    def __init__(
        self, ignore: tuple[int, ...] = (), initial_variance: float = 5.0, least_variance: float = 1e-5
    ) -> None:
        super().__init__(ignore)
        self.initial_variance, self.least_variance = initial_variance, least_variance

    def setup(self, context: TermContext) -> None:
        """Make each stage's regressor and variances."""
        super().setup(context)
        # log(exp(v) - 1) = v + log(1 - exp(-v)), which does not overflow.
        above = self.initial_variance - self.least_variance
        first = above + math.log(-math.expm1(-above))
        self.regressors, self.log_scales = nn.ModuleDict(), nn.ParameterDict()
        for stage in self.stages:
            pair = context.stages[stage]
            self.regressors[str(stage)] = regressor(pair.student_channels, pair.teacher_channels)
            self.log_scales[str(stage)] = nn.Parameter(torch.full((pair.teacher_channels,), first))

    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's loss."""
        student, teacher = meet(student, teacher)
        predicted = self.regressors[str(stage)](student)
        return vid_loss(predicted, teacher, self.log_scales[str(stage)], self.least_variance)


def regressor(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """Three 1 x 1 convolutions without bias, as wide as the teacher's map, with ReLUs between them."""
    return nn.Sequential(
        nn.Conv2d(student_channels, teacher_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(teacher_channels, teacher_channels, 1, bias=False),
    )
