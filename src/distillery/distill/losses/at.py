"""AT: attention transfer (Zagoruyko, Komodakis, ICLR 2017).

B batch, S/T student/teacher channels, H W pixels.
"""

from torch import Tensor

from distillery.distill.losses.stages import EveryStage, meet, unit
from distillery.distill.precision import full_precision


@full_precision
def at_loss(student: Tensor, teacher: Tensor, power: int = 2) -> Tensor:
    """One stage's ``mean (a(f_s) - a(f_t))^2`` over batch and pixels, a scalar; the method sums over the stages.

    ``a(f)`` is the mean over the channels of ``f^power``, flattened over the pixels, at length 1 (as
    szagoruyko/attention-transfer ``utils.at_loss``).

    Args:
        student: what the stage hands on, (B, S, H, W).
        teacher: likewise, (B, T, H, W); detached. Of two sizes, the larger map is pooled first.
        power: of the features, at least 1.
    """
    student, teacher = meet(student, teacher.detach())
    return (_attention(student, power) - _attention(teacher, power)).square().mean()


def _attention(feature: Tensor, power: int) -> Tensor:
    return unit(feature.pow(power).mean(dim=1).flatten(1))


class AT(EveryStage):
    """The term ``at``: the student's channels together are strong at the pixels where the teacher's are."""

    name = "at"

    def __init__(self, ignore: tuple[int, ...] = (), power: int = 2) -> None:
        super().__init__(ignore)
        self.power = power

    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's loss."""
        return at_loss(student, teacher, self.power)
