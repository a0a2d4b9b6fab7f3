"""What terms do alike at the ends of the networks' stages.

B batch, H W pixels.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.partial_l2 import stage_weights
from distillery.distill.step import StepInputs
from distillery.distill.term import StagePair, Term, TermContext
from distillery.errors import UserError, located
from distillery.experiment.schema.objective import (
    STAGEWISE,
    EveryStageOptions,
    FitNetOptions,
    OFAOptions,
    USKDOptions,
)
from distillery.models.registry import create_model
from distillery.models.taps import match_size, pair_stages, plan_taps

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


def chosen_stage(stages: int, stage: int, term: str) -> int:
    """A stage that a term names.

    Raises:
        UserError: the networks have no such stage.
    """
    if stage >= stages:
        raise UserError(f"objective.{term}.stage: no stage {stage}; the networks have {stages}, counted from 0")
    return stage


def projected_stages(
    count: int, stages: Sequence[int] | None, eps: float | Sequence[float]
) -> tuple[tuple[int, ...], list[float]]:
    """The stages of a student of so many that have logits for ``ofa``, and each one's exponent, the network's own last.

    Raises:
        UserError: the student has no such stage, or there is another number of exponents.
    """
    chosen = tuple(range(count)) if stages is None else tuple(stages)
    beyond = sorted(stage for stage in chosen if stage >= count)
    if beyond:
        raise UserError(f"objective.ofa.stages: no stage {beyond[0]}; the student has {count}, counted from 0")
    exponents = [eps] * (len(chosen) + 1) if isinstance(eps, float | int) else list(eps)
    if len(exponents) != len(chosen) + 1:
        raise UserError(
            f"objective.ofa.eps: {len(exponents)} values, but {len(chosen)} stages and the logits need "
            f"{len(chosen) + 1}, or one for all"
        )
    return chosen, exponents


def check_stages(experiment: "Experiment") -> None:
    """Check that the stages which an experiment's runs name are there, before anything is trained.

    Raises:
        UserError: one is not; the line names the run and the key.
    """

    @lru_cache
    def plan(run: str, size: int) -> "TapPlan":
        config = experiment.config.runs[run]
        return plan_taps(create_model(config.model, 2, **config.model_args), size, config.model)

    for run, recipe in experiment.recipes.items():
        objective = experiment.config.runs[run].objective
        is_paired = objective.needs().teacher & STAGEWISE
        for name, options in objective.terms().items():
            teacher = options.teacher or experiment.teacher(run)
            ignored = frozenset(options.ignore) if isinstance(options, EveryStageOptions) else frozenset()
            stage = options.stage if isinstance(options, FitNetOptions | USKDOptions) else None
            projects = isinstance(options, OFAOptions) and (options.stages or isinstance(options.eps, tuple))
            if not ignored and stage is None and not projects:
                continue
            size = recipe.preprocess.size
            with located(experiment.where(run)):
                if isinstance(options, OFAOptions):
                    projected_stages(len(plan(run, size).unpaired), options.stages, options.eps)
                    continue
                # Where nothing is taken of the teacher's stages, all of the student's are.
                own = plan(run, size)
                count = len(pair_stages(plan(teacher, size), own) if teacher and is_paired else own.points)
                distilled_stages(count, ignored, name)
                if stage is not None:
                    chosen_stage(count, stage, name)


def meet(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two networks' maps at the smaller height and the smaller width of both: averages of the larger one's pixels."""
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return match_size(student, size), match_size(teacher, size)


def unit(rows: Tensor) -> Tensor:
    """Rows (..., D) at length 1; those of zero stay, and give no gradient."""
    empty = (rows.detach() == 0).all(dim=-1, keepdim=True)
    return F.normalize(rows.masked_fill(empty, 0), dim=-1)


def check_normalizable(feature: Tensor, module: nn.Module, term: str) -> None:
    """Check that a batch norm of a term has statistics.

    Raises:
        UserError: there is one number a channel.
    """
    if module.training and len(feature) * feature[0, 0].numel() == 1:
        raise UserError(
            f"objective.{term}: a batch of one image gives one number a channel, which no batch norm can normalise; "
            "raise `batch`, or set `drop_last: true`"
        )


class EveryStage(Term):
    """A term that is a sum over the stages, of the maps of one kind there."""

    name: ClassVar[str]
    kind: ClassVar[Literal["raw", "stages"]] = "raw"

    def __init__(self, ignore: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.ignore = frozenset(ignore)
        self.stages: list[int] = []

    def setup(self, context: TermContext) -> None:
        """Find the stages that have a loss."""
        self.stages = distilled_stages(len(context.stages), self.ignore, self.name)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum over the stages."""
        assert inputs.teacher is not None
        maps = list(zip(getattr(inputs.student, self.kind), getattr(inputs.teacher, self.kind), strict=True))
        return torch.stack([self.distance(stage, *maps[stage]) for stage in self.stages]).sum()

    @abstractmethod
    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's loss, a scalar."""


class MarginStages(EveryStage):
    """What MGD and Overhaul share: maps before the activation, and the margins of the teacher's."""

    kind = "stages"

    def __init__(
        self,
        ignore: tuple[int, ...] = (),
        normalize: Literal["reference", "mean"] = "reference",
        loss_factor: float = 1e4,
    ) -> None:
        super().__init__(ignore)
        self.normalize, self.loss_factor = normalize, loss_factor
        self.weights: list[float] = []

    def setup(self, context: TermContext) -> None:
        """Keep each stage's weight and margin."""
        super().setup(context)
        self.weights = stage_weights(len(context.stages))
        for stage in self.stages:
            self.register_buffer(f"margin{stage}", margin_or_relu(context.stages[stage]), persistent=False)
