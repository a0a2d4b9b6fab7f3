"""Masked generative distillation (Yang et al., ECCV 2022), which also calls itself MGD; not ``mgd``.

B batch, S/T student/teacher channels, H W pixels.
"""

import torch
from torch import Tensor, nn

from distillery.distill.draws import image_keys, uniform
from distillery.distill.losses.stages import meet
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext


@full_precision
def masked_generative_loss(generated: Tensor, teacher: Tensor, alpha: float = 7e-5) -> Tensor:
    """``alpha sum (g(mask x) - f_t)^2 / B``, a scalar (as cls_KD ``mmcls/models/dis_losses/mgd.py``).

    Args:
        generated: of the student's masked map, (B, T, H, W).
        teacher: what the last stage hands on, (B, T, H, W); detached.
        alpha: at least 0.
    """
    return alpha * (generated - teacher.detach()).square().sum() / len(generated)


class MaskedGenerative(Term):
    """The term ``masked_generative``: the teacher's last map is made of some channels of the student's.

    The student's map goes through a 1 x 1 convolution where the widths differ, loses whole channels, and goes through
    two 3 x 3 convolutions with a ReLU between them. Which channels is a function of (seed, epoch, image).
    """

    def __init__(self, alpha: float = 7e-5, masked_share: float = 0.15) -> None:
        super().__init__()
        self.alpha, self.masked_share = alpha, masked_share

    def setup(self, context: TermContext) -> None:
        """Make the convolutions."""
        pair, self.seed = context.stages[-1], context.seed
        student, teacher = pair.student_channels, pair.teacher_channels
        self.align = nn.Identity() if student == teacher else nn.Conv2d(student, teacher, 1)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher, teacher, 3, padding=1), nn.ReLU(), nn.Conv2d(teacher, teacher, 3, padding=1)
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over the batch of ``alpha`` x the squared distance."""
        assert inputs.teacher is not None
        assert inputs.indices_B is not None
        teacher = inputs.teacher.raw[-1]
        kept_BT = self.draw_kept(int(inputs.epoch), inputs.indices_B, teacher.shape[1])
        return self.distance(inputs.student.raw[-1], teacher, kept_BT[:, :, None, None])

    def draw_kept(self, epoch: int, indices_B: Tensor, channels: int) -> Tensor:
        """Which channels each image keeps, bool (B, T)."""
        drawn_BT = uniform(image_keys(self.seed, "mask", epoch, indices_B), channels)
        return (drawn_BT >= self.masked_share).to(indices_B.device)

    def distance(self, student: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
        """The loss of two maps, given the mask (B, T, 1, 1): 1 where a channel is kept."""
        student, teacher = meet(student, teacher)
        aligned = self.align(student)
        return masked_generative_loss(self.generation(torch.where(kept.bool(), aligned, 0)), teacher, self.alpha)
