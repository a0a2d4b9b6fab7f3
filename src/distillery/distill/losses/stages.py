"""What MGD and Overhaul do alike at the ends of the networks' stages."""

import torch
from torch import Tensor

from distillery.distill.term import StagePair
from distillery.errors import UserError


def margin_or_relu(pair: StagePair) -> Tensor:
    """The margins of a stage's teacher channels, (1, T, 1, 1); zero, as of a ReLU, where no norm feeds them."""
    if pair.teacher_margin is None:
        return torch.zeros(1, pair.teacher_channels, 1, 1)
    return pair.teacher_margin


def distilled_stages(stages: int, ignore: frozenset[int], term: str) -> list[int]:
    """The stages that have a loss.

    Raises:
        UserError: an ignored stage does not exist, or none is left.
    """
    beyond = sorted(stage for stage in ignore if stage >= stages)
    if beyond:
        raise UserError(f"objective.{term}.ignore: no stage {beyond[0]}; the networks have {stages}, counted from 0")
    left = [stage for stage in range(stages) if stage not in ignore]
    if not left:
        raise UserError(f"objective.{term}.ignore: {sorted(ignore)} leaves no stage to learn from")
    return left
