"""MGD: matching guided distillation (Yue et al., ECCV 2020).

Each student channel learns from the teacher channels that it resembles most. Which ones is found by optimal assignment
(the flow), not learned; a reducer then makes one target of a student channel's group.

B batch, S student channels, T teacher channels, H W pixels, P = H x W, G teacher channels of each student channel.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distillery.accelerator import float64_device, wide
from distillery.distill.losses.assignment import assign
from distillery.distill.losses.partial_l2 import partial_l2
from distillery.distill.losses.stages import MarginStages, check_normalizable
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import CalibrationBatches, TermContext
from distillery.errors import UserError

Reducer = Literal["amp", "rd", "sm", "sp"]

# The assignment is solved in integers: costs, which lie in [0, 4], at five decimals, cut off.
COST_SCALE = 1e5


@torch.no_grad()
@full_precision
def matching_cost(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """How unlike each pair of channels is: squared distance of their unit maps, summed over the batch.

    A channel's map is brought to length 1 over the pixels of one image, without taking off its mean; the squared
    distance of two unit maps is ``2 - 2 <s, t>``, in [0, 4]. A map of zeros is at distance 2 from all. Batch and pixels
    are folded into one dimension, so that one matrix product sums over both.

    Add the costs of many batches and divide by the number of images before matching.

    Args:
        student_feature: pre-activation, (B, S, H, W).
        teacher_feature: pre-activation, (B, T, H, W), on the same pixels.

    Returns:
        (S, T) float64.
    """
    assert student_feature.shape[0] == teacher_feature.shape[0], "one batch"
    assert student_feature.shape[2:] == teacher_feature.shape[2:], "one map size"
    products = _unit_maps(student_feature) @ _unit_maps(teacher_feature).T
    return wide(products).neg_().add_(len(student_feature)).mul_(2)


def _unit_maps(feature_BCHW: Tensor) -> Tensor:
    """Every map at length 1, all maps of a channel in one row: (C, B x P)."""
    maps_CBP = feature_BCHW.flatten(2).transpose(0, 1)
    length_CB1 = torch.linalg.vector_norm(maps_CBP, dim=2, keepdim=True).clamp_min_(1e-12)
    # Divided straight into its final layout: fresh memory is a good part of the time here.
    unit_CBP = maps_CBP.new_empty(maps_CBP.shape)
    torch.div(maps_CBP, length_CB1, out=unit_CBP)
    return unit_CBP.flatten(1)


def match_channels(mean_cost: Tensor, reducer: Reducer, columns: int | None = None) -> Tensor:
    """Find the flow: for each student channel the teacher channels it learns from, at the least total cost.

    With T >= S, ``sm`` gives each student channel one teacher channel, the other reducers ``G = floor(T / S)`` distinct
    ones, and no teacher channel serves two. With T < S, where the original has no answer, each student channel gets one
    teacher channel, and each teacher channel serves ``floor(S / T)`` or ``ceil(S / T)`` student channels, so that no
    teacher channel is left out and none dominates.

    Costs are integers, ``trunc(1e5 x cost)``, as in the original; the result is an exact optimum.

    Args:
        mean_cost: ``matching_cost`` per image, (S, T).
        reducer: the reducer that the flow is for.
        columns: only the first so many teacher channels are candidates. The original takes ``G x S`` for amp, rd and sp
            (where S does not divide T, the last channels by index are left out, however well they match); by default
            all take part.

    Returns:
        (S, G) int64 on the device of ``mean_cost``, ascending along G.

    Raises:
        UserError: costs are not finite, that is, the features were not.
    """
    students, teachers = mean_cost.shape
    group = 1 if reducer == "sm" else max(teachers // students, 1)
    cost_ST = wide(mean_cost[:, :columns].detach()).cpu().numpy()
    if not np.isfinite(cost_ST).all():
        raise UserError(
            "objective.mgd: the matching cost of student and teacher features is nan or infinite, it should lie in "
            "[0, 4]: training has diverged, or a network's weights are broken; try a lower learning rate"
        )
    assert group <= cost_ST.shape[1], f"{group} teacher channels a student channel, of {cost_ST.shape[1]}"
    flow = assign((COST_SCALE * cost_ST).astype(np.int64), group)
    return torch.from_numpy(flow).to(mean_cost.device)


@torch.no_grad()
@full_precision
def reduce_channels(
    feature: Tensor, margin: Tensor, flow: Tensor, reducer: Reducer, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Make one target of each student channel's group of teacher channels.

    ========  ==================================================  ===================================
    reducer   target, at each pixel                               margin
    ========  ==================================================  ===================================
    ``sm``    the one member                                      the member's
    ``rd``    a member drawn for each image, channel and pixel    of a member drawn for each channel
    ``amp``   the member of largest absolute value, with sign     the mean of the members'
    ``sp``    the largest member                                  the largest
    ========  ==================================================  ===================================

    Args:
        feature: the teacher's pre-activation, (B, T, H, W).
        margin: (1, T, 1, 1).
        flow: (S, G), from ``match_channels``.
        reducer: one of the four.
        generator: source of ``rd``'s draws, pixels first and then margins; the default generator if None.

    Returns:
        The target (B, S, H, W) and its margin (1, S, 1, 1), without gradient.
    """
    margin_SG = margin.flatten()[flow]
    if reducer == "sm":
        assert flow.shape[1] == 1, "sm needs a flow with one teacher channel a student channel"
        return feature.index_select(1, flow[:, 0]), _as_margin(margin_SG[:, 0])
    if reducer == "rd":
        return drop_channels(feature, margin, flow, *_draw_picks(feature, flow, generator))
    if reducer == "amp":
        return _pool_absolute(feature, flow), _as_margin(margin_SG.mean(dim=1))
    if reducer == "sp":
        return _pool_simple(feature, flow), _as_margin(margin_SG.amax(dim=1))
    raise UserError(f"objective.mgd.reducer: {reducer!r}; should be one of amp, rd, sm, sp")


@torch.no_grad()
def drop_channels(
    feature: Tensor, margin: Tensor, flow: Tensor, pixel_picks: Tensor, margin_picks: Tensor
) -> tuple[Tensor, Tensor]:
    """Keep one given member of each group and drop the others: ``rd`` with the draws made.

    The two draws are independent, as in the original: a pixel's target and its channel's margin may come from
    different members.

    Args:
        feature: the teacher's pre-activation, (B, T, H, W).
        margin: (1, T, 1, 1).
        flow: (S, G).
        pixel_picks: members in [0, G), (B, S, H, W).
        margin_picks: members in [0, G), (S,).

    Returns:
        The target (B, S, H, W) and its margin (1, S, 1, 1).
    """
    channels = torch.arange(len(flow), device=flow.device)
    picked_BSHW = flow[channels[:, None, None], pixel_picks]
    return feature.gather(1, picked_BSHW), _as_margin(margin.flatten()[flow[channels, margin_picks]])


def _draw_picks(feature: Tensor, flow: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    (students, group), (batch, _, *pixels) = flow.shape, feature.shape
    device = feature.device if generator is None else generator.device
    of_pixels = torch.randint(group, (batch, students, *pixels), generator=generator, device=device)
    of_margins = torch.randint(group, (students,), generator=generator, device=device)
    return of_pixels.to(feature.device), of_margins.to(feature.device)


def _pool_absolute(feature: Tensor, flow: Tensor) -> Tensor:
    largest = feature.index_select(1, flow[:, 0])
    for members in flow.T[1:]:
        member = feature.index_select(1, members)
        largest = torch.where(member.abs() > largest.abs(), member, largest)
    return largest


def _pool_simple(feature: Tensor, flow: Tensor) -> Tensor:
    largest = feature.index_select(1, flow[:, 0])
    for members in flow.T[1:]:
        torch.maximum(largest, feature.index_select(1, members), out=largest)
    return largest


def _as_margin(margin_S: Tensor) -> Tensor:
    return margin_S.reshape(1, -1, 1, 1)


class MGD(MarginStages):
    """The term ``mgd``: the student's channels, normalised, approach their groups of teacher channels.

    Each stage has a batch norm of its own between the student's features and the loss, trained with the student and
    used for nothing else. The flow is found again before every ``update_every``-th epoch and is part of the state.
    """

    name = "mgd"

    def __init__(
        self,
        reducer: Reducer = "amp",
        update_every: int = 2,
        update_images: int = 20_480,
        ignore: tuple[int, ...] = (),
        normalize: Literal["reference", "mean"] = "reference",
        loss_factor: float = 1e4,
        compat: Literal["fixed", "reference"] = "fixed",
    ) -> None:
        super().__init__(ignore, normalize, loss_factor)
        self.reducer, self.update_every, self.update_images, self.compat = reducer, update_every, update_images, compat
        self.batch_fraction = 1.0

    def setup(self, context: TermContext) -> None:
        """Make each stage's batch norm and (still empty) flow."""
        super().setup(context)
        self.collective = context.collective
        self.shave = any(pair.teacher_channels % pair.student_channels for pair in context.stages)
        self.norms = nn.ModuleDict()
        for stage in self.stages:
            pair = context.stages[stage]
            self.norms[str(stage)] = nn.BatchNorm2d(pair.student_channels)
            group = 1 if self.reducer == "sm" else max(pair.teacher_channels // pair.student_channels, 1)
            self.register_buffer(f"flow{stage}", torch.zeros(pair.student_channels, group, dtype=torch.long))

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Match the channels again when it is time: every process measures its share, all get one flow."""
        if epoch % self.update_every:
            return
        images, costs = 0, {stage: self._no_cost(stage) for stage in self.stages}
        for inputs in calibration_batches(self.update_images):
            assert inputs.teacher is not None
            images += len(inputs.student.logits_BC)
            for stage in self.stages:
                costs[stage] += matching_cost(inputs.student.stages[stage], inputs.teacher.stages[stage])
        for stage in self.stages:
            flow = self.get_buffer(f"flow{stage}")
            cost = costs[stage]
            total = self.collective.all_reduce(torch.tensor(float(images), dtype=torch.float64, device=cost.device))
            mean_cost = self.collective.all_reduce(cost) / total
            students, teachers = mean_cost.shape
            cut = self.compat == "reference" and self.shave and self.reducer != "sm" and teachers >= students
            columns = teachers // students * students if cut else None
            flow.copy_(self.collective.broadcast(match_channels(mean_cost, self.reducer, columns).to(flow.device)))

    def _no_cost(self, stage: int) -> Tensor:
        flow, margin = self.get_buffer(f"flow{stage}"), self.get_buffer(f"margin{stage}")
        return torch.zeros(len(flow), margin.numel(), dtype=torch.float64, device=float64_device(flow.device))

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the weighted sum over the stages."""
        self.batch_fraction = inputs.batch_fraction if self.compat == "reference" else 1.0
        return super().forward(inputs)

    def distance(self, stage: int, student: Tensor, teacher: Tensor) -> Tensor:
        """Return one stage's weighted loss."""
        check_normalizable(student, self, self.name)
        source: Tensor = self.norms[str(stage)](student)
        margin, flow = self.get_buffer(f"margin{stage}"), self.get_buffer(f"flow{stage}")
        target, margin = reduce_channels(teacher, margin, flow, self.reducer)
        distance = self.weights[stage] * partial_l2(source, target, margin)
        if self.normalize == "mean":
            return distance / source.numel()
        return distance / len(source) / self.loss_factor * self.batch_fraction
