"""ReviewKD: knowledge review (Chen et al., CVPR 2021).

B batch, S/T student/teacher channels, M channels of fused maps, H W pixels.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.stages import check_normalizable
from distillery.distill.precision import full_precision
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import Term, TermContext

# Widths of the fused maps, unless the student's embedding is narrower.
MID_CHANNELS = 512


@full_precision
def reviewkd_loss(made: Tensor, teacher: Tensor) -> Tensor:
    """The hierarchical context loss of one map, a scalar; the method sums over the maps.

    With ``l`` those of 4, 2, 1 that are smaller than the map, and ``k`` = 1, 2, .. counting them,

        (MSE + sum_k 2^-k MSE of both pooled to l x l) / (1 + sum_k 2^-k)

    where MSE is the mean over all entries (as ReviewKD ``hcl``).

    Args:
        made: of the student's maps, (B, T, H, W).
        teacher: before its activation, (B, T, H, W); detached.
    """
    teacher = teacher.detach()
    losses, weights = [F.mse_loss(made, teacher)], [1.0]
    for side in (4, 2, 1):
        if side < min(made.shape[2:]):
            losses.append(F.mse_loss(F.adaptive_avg_pool2d(made, side), F.adaptive_avg_pool2d(teacher, side)))
            weights.append(weights[-1] / 2)
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum() / sum(weights)


class Fusion(nn.Module):
    """Fuses one map of the student with what came from the deeper ones, and makes the teacher's of it."""

    def __init__(self, student_channels: int, mid_channels: int, teacher_channels: int, deepest: bool) -> None:
        super().__init__()
        narrowing = nn.Conv2d(student_channels, mid_channels, 1, bias=False)
        making = nn.Conv2d(mid_channels, teacher_channels, 3, padding=1, bias=False)
        for convolution in (narrowing, making):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.conv1 = nn.Sequential(narrowing, nn.BatchNorm2d(mid_channels))
        self.conv2 = nn.Sequential(making, nn.BatchNorm2d(teacher_channels))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * mid_channels, 2, 1), nn.Sigmoid())

    def forward(self, feature: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return what is compared, (B, T, *size), and what the next shallower map is fused with, (B, M, *size).

        Args:
            feature: the student's map, (B, S, H, W).
            deeper: the second result for the next deeper map, (B, M, ...); None at the deepest.
            size: height and width of the teacher's map.
        """
        check_normalizable(feature, self, "reviewkd")
        fused: Tensor = self.conv1(feature)
        if self.att_conv is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, feature.shape[2:], mode="nearest")
            gates = self.att_conv(torch.cat([fused, deeper], dim=1))
            fused = fused * gates[:, :1] + deeper * gates[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, size, mode="nearest")
        made: Tensor = self.conv2(fused)
        return made, fused


class ReviewKD(Term):
    """The term ``reviewkd``: maps of all stages and the embedding, a map of 1 x 1, are reviewed from the last back.

    Each is fused with what came from the deeper ones, and compared with the teacher's of its stage.
    """

    def __init__(self, mid_channels: int | None = None, student: Literal["after", "before"] = "after") -> None:
        super().__init__()
        self.mid_channels, self.student = mid_channels, student

    def setup(self, context: TermContext) -> None:
        """Make a fusion for each stage and for the embedding."""
        mid = self.mid_channels or min(MID_CHANNELS, context.student_features)
        widths = [(pair.student_channels, pair.teacher_channels) for pair in context.stages]
        self.fusions = nn.ModuleList(Fusion(student, mid, teacher, deepest=False) for student, teacher in widths)
        self.fusions.append(Fusion(context.student_features, mid, context.teacher_features, deepest=True))

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum over the maps."""
        assert inputs.teacher is not None
        student = inputs.student.unpooled
        targets = _with_embedding(inputs.teacher.unpooled.stages, inputs.teacher)
        made = self.review(
            _with_embedding(student.raw if self.student == "after" else student.stages, inputs.student), targets
        )
        return torch.stack([reviewkd_loss(*pair) for pair in zip(made, targets, strict=True)]).sum()

    def review(self, maps: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """What is made of the student's maps, from the shallowest to the deepest, in the targets' sizes."""
        deeper: Tensor | None = None
        made: list[Tensor] = []
        for fusion, feature, target in reversed(list(zip(self.fusions, maps, targets, strict=True))):
            height, width = target.shape[2:]
            output, deeper = fusion(feature, deeper, (height, width))
            made.insert(0, output)
        return made


def _with_embedding(maps: Sequence[Tensor], outputs: Outputs) -> list[Tensor]:
    assert outputs.embedding_BD is not None
    return [*maps, outputs.embedding_BD[:, :, None, None]]
