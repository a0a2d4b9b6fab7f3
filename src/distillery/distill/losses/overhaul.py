"""Overhaul: feature distillation before the activation (Heo et al., ICCV 2019).

B batch, H W pixels; the channels are the teacher's, for a connector has widened the student's features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillery.distill.losses.partial_l2 import partial_l2, stage_weights
from distillery.distill.losses.stages import MarginStages, check_normalizable
from distillery.distill.precision import as_the_networks
from distillery.distill.term import TermContext


def overhaul_loss(connected: Sequence[Tensor], teacher: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Sum over the stages of weight x partial L2, a scalar; not divided by the batch.

    The weights are ``1 / 2^(n-1-i)``. The original divides the result by the batch and by 10,000 (ImageNet) or 1,000
    (CIFAR).

    Args:
        connected: for each stage, the student's pre-activation through its connector, (B, c_t, H, W).
        teacher: for each stage, the teacher's pre-activation, same shape; detached.
        margins: for each stage, ``bn_margin`` of the teacher's batch norm, (1, c_t, 1, 1).
    """
    distances = [partial_l2(*stage) for stage in zip(connected, teacher, margins, strict=True)]
    return torch.stack(
        [weight * distance for weight, distance in zip(stage_weights(len(distances)), distances, strict=True)]
    ).sum()


class Overhaul(MarginStages):
    """The term ``overhaul``: the student's features, widened by a connector, meet the teacher's beyond their margins.

    A connector is a 1 x 1 convolution to the teacher's width and a batch norm, trained with the student and used for
    nothing else. It is computed in the run's precision, as the student; what follows is not.
    """

    name = "overhaul"

    def setup(self, context: TermContext) -> None:
        """Make each stage's connector."""
        super().setup(context)
        pairs = {str(stage): context.stages[stage] for stage in self.stages}
        self.connectors = nn.ModuleDict(
            {stage: connector(pair.student_channels, pair.teacher_channels) for stage, pair in pairs.items()}
        )

    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's weighted loss."""
        check_normalizable(student, self, self.name)
        with as_the_networks(student):
            connected = self.connectors[str(stage)](student)
        distance = self.weights[stage] * partial_l2(connected, teacher, self.get_buffer(f"margin{stage}"))
        return distance / (connected.numel() if self.normalize == "mean" else len(connected) * self.loss_factor)


def connector(student_channels: int, teacher_channels: int) -> nn.Sequential:
    """A 1 x 1 convolution without bias, drawn from N(0, 2 / teacher_channels), and a batch norm."""
    convolution = nn.Conv2d(student_channels, teacher_channels, kernel_size=1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels))
