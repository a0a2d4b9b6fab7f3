"""ICKD: inter-channel correlation (Liu et al., ICCV 2021).

B batch, S/T student/teacher channels, H W pixels.
"""

from torch import Tensor, nn

from distillery.distill.losses.stages import check_normalizable, unit
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext


@full_precision
def ickd_loss(embedded: Tensor, teacher: Tensor) -> Tensor:
    """``sum (G_s - G_t)^2 / (B T)``, a scalar.

    ``G`` (T, T) holds the products of an image's channels, sums over the pixels, every row at length 1 (as ICKD
    ``Cifar100/distiller_zoo/ICKD.py``).

    Args:
        embedded: the student's map in the teacher's width, (B, T, H, W).
        teacher: a map, (B, T, H', W'), of any size; detached.
    """
    difference_BTT = _correlations(embedded) - _correlations(teacher.detach())
    return difference_BTT.square().sum(dim=2).mean()


def _correlations(map_BTHW: Tensor) -> Tensor:
    channels_BTP = map_BTHW.flatten(2)
    return unit(channels_BTP @ channels_BTP.transpose(1, 2))


class ICKD(Term):
    """The term ``ickd``: two channels of the student's last map go together as the teacher's do.

    A 1 x 1 convolution without bias and a batch norm widen the student's map to the teacher's channels; they are
    trained with the student and used for nothing else.
    """

    def setup(self, context: TermContext) -> None:
        """Make the convolution and its batch norm."""
        last = context.stages[-1]
        convolution = nn.Conv2d(last.student_channels, last.teacher_channels, kernel_size=1, bias=False)
        self.embed = nn.Sequential(convolution, nn.BatchNorm2d(last.teacher_channels))

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over images and channels."""
        assert inputs.teacher is not None
        student = inputs.student.unpooled.raw[-1]
        check_normalizable(student, self.embed, "ickd")
        return ickd_loss(self.embed(student), inputs.teacher.unpooled.raw[-1])
