"""FitNet: hints (Romero et al., ICLR 2015), as RepDistiller and those after it train them: in one sum with the rest.

B batch, S/T student/teacher channels, H W pixels.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.stages import check_normalizable, meet
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext
from distillery.experiment.stages import chosen_stage
from distillery.models.taps import Size, match_size


@full_precision
def fitnet_loss(regressed: Tensor, teacher: Tensor) -> Tensor:
    """``mean (R(f_s) - f_t)^2`` over all entries, a scalar (as RepDistiller ``distiller_zoo/FitNet.py``).

    Args:
        regressed: the student's map through a regressor, (B, T, H, W).
        teacher: what the stage hands on, (B, T, H, W); detached. Of two sizes, the larger map is pooled first.
    """
    return F.mse_loss(*meet(regressed, teacher.detach()))


class Regressor(nn.Module):
    """A convolution from a student's map to the size of the teacher's, a batch norm, and a ReLU.

    | student's map | convolution |
    |---|---|
    | as large | 1 x 1 |
    | twice as large | 3 x 3, stride 2, padding 1 |
    | half as large | transposed 4 x 4, stride 2, padding 1 |
    | larger otherwise | ``reference``: as large as the difference + 1, unpadded; ``fixed``: 1 x 1 on the pooled map |
    | else | 3 x 3, padding 1, and the teacher's map is pooled (as in SimKD's code; RepDistiller stops) |
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        student_size: Size,
        teacher_size: Size,
        compat: Literal["fixed", "reference"] = "fixed",
        relu: bool = True,
    ) -> None:
        super().__init__()
        channels = student_channels, teacher_channels
        beyond = [student - teacher for student, teacher in zip(student_size, teacher_size, strict=True)]
        self.pooled: Size | None = None
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if student_size == (2 * teacher_size[0], 2 * teacher_size[1]):
            self.conv = nn.Conv2d(*channels, 3, stride=2, padding=1)
        elif teacher_size == (2 * student_size[0], 2 * student_size[1]):
            self.conv = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
        elif min(beyond) < 0:
            self.conv = nn.Conv2d(*channels, 3, padding=1)
        elif compat == "reference":
            self.conv = nn.Conv2d(*channels, (1 + beyond[0], 1 + beyond[1]))
        else:
            self.conv, self.pooled = nn.Conv2d(*channels, 1), teacher_size
        self.bn = nn.BatchNorm2d(teacher_channels)
        self.relu = relu

    def forward(self, feature: Tensor) -> Tensor:
        """Return (B, T, H, W) for (B, S, ...)."""
        if self.pooled is not None:
            feature = match_size(feature, self.pooled)
        made = self.conv(feature)
        check_normalizable(made, self, "fitnet")
        normed: Tensor = self.bn(made)
        return normed.relu() if self.relu else normed


class FitNet(Term):
    """The term ``fitnet``: from the student's map of one stage, the teacher's can be made."""

    def __init__(self, stage: int = 1, compat: Literal["fixed", "reference"] = "fixed") -> None:
        super().__init__()
        self.stage, self.compat = stage, compat

    def setup(self, context: TermContext) -> None:
        """Make the regressor."""
        pair = context.stages[chosen_stage(len(context.stages), self.stage, "fitnet")]
        self.regressor = Regressor(
            pair.student_channels, pair.teacher_channels, pair.student_size, pair.teacher_size, self.compat
        )

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the mean over all entries."""
        assert inputs.teacher is not None
        regressed = self.regressor(inputs.student.unpooled.raw[self.stage])
        return fitnet_loss(regressed, inputs.teacher.unpooled.raw[self.stage])
