"""What MGD and Overhaul do alike at the ends of the networks' stages."""

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distillery.distill.term import StagePair
from distillery.errors import UserError, located
from distillery.experiment.schema.objective import StageOptions
from distillery.models.registry import create_model
from distillery.models.taps import pair_stages, plan_taps

if TYPE_CHECKING:
    from distillery.experiment.experiment import Experiment
    from distillery.models.taps import TapPlan


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


def check_ignored_stages(experiment: "Experiment") -> None:
    """Check that the stages which an experiment's runs leave out are there, before anything is trained.

    Raises:
        UserError: one is not; the line names the run and the key.
    """

    @lru_cache
    def plan(run: str, size: int) -> "TapPlan":
        config = experiment.config.runs[run]
        return plan_taps(create_model(config.model, 2, **config.model_args), size, config.model)

    for run, recipe in experiment.recipes.items():
        teacher = experiment.teacher(run)
        for name, options in experiment.config.runs[run].objective.terms().items():
            if isinstance(options, StageOptions) and options.ignore and teacher is not None:
                size = recipe.preprocess.size
                with located(experiment.where(run)):
                    distilled_stages(
                        len(pair_stages(plan(teacher, size), plan(run, size))), frozenset(options.ignore), name
                    )
