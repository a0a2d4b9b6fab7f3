"""Bring the stages of a teacher and of a student together.

B batch, C channels, H height, W width.
"""

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from itertools import combinations

import torch.nn.functional as F
from torch import Tensor, nn

from distillery.experiment.schema.objective import STAGEWISE, Kind, Needs
from distillery.models.taps.plan import TapError, TapPlan, TapPoint, norm_affine
from distillery.models.taps.planning import plan_taps
from distillery.models.taps.recording import Taps

Pair = tuple[TapPoint, TapPoint]
Size = tuple[int, int]


@dataclass(frozen=True)
class Party:
    """One network of a pair, with the taps that were asked for.

    Attributes:
        points: its tap at each paired stage; empty if no feature of its stages is wanted.
        taps: None if its logits are all that is wanted.
        features: D of its embedding, 0 if neither it nor the last layer is wanted.
        classifier: its last linear layer, if wanted.
        unpaired: its tap at each of its stages, whatever the other network has.
        averaged: the size of the map that is averaged to the embedding; (1, 1) where there is none.
        last: its tap on the map that the embedding is made of.
    """

    points: tuple[TapPoint, ...] = ()
    taps: Taps | None = None
    features: int = 0
    classifier: nn.Module | None = None
    unpaired: tuple[TapPoint, ...] = ()
    averaged: Size = (1, 1)
    last: TapPoint | None = None


@dataclass(frozen=True)
class TapPair:
    """A student and its teacher, tapped for what an objective needs, and the sizes at which stages are compared."""

    student: Party
    teacher: Party
    sizes: tuple[Size, ...]

    def norms(self, origin: nn.Module) -> list[tuple[Tensor, Tensor] | None]:
        """Scale and shift of the batch norms that feed the teacher's stages, in ``origin``, a network like it."""
        return [norm_affine(origin, point) for point in self.teacher.points]


def pair_networks(
    student: nn.Module,
    teacher: nn.Module | None,
    needs: Needs,
    input_size: int,
    names: tuple[str, str] = ("student", "teacher"),
    teacher_size: int | None = None,
) -> TapPair:
    """Tap a student and its teacher for what is needed, and nothing else.

    The student's images have ``input_size`` pixels a side, the teacher's ``teacher_size`` where that is another.
    Stages are paired where both networks' are wanted; of one network alone, all its stages are taken.

    Raises:
        TapError: a network does not have what is wanted.
    """
    wanted = (needs.student, needs.teacher)
    plans = [
        plan_taps(network, size, name) if network is not None and kinds - {"logits"} else None
        for network, kinds, name, size in zip(
            (student, teacher), wanted, names, (input_size, teacher_size or input_size), strict=True
        )
    ]
    points = [plan.points if plan and kinds & STAGEWISE else () for plan, kinds in zip(plans, wanted, strict=True)]
    if all(points):
        assert plans[0] is not None
        assert plans[1] is not None
        matched = pair_stages(plans[1], plans[0])
        points = [tuple(point for _, point in matched), tuple(point for point, _ in matched)]
        sizes = tuple(common_size(*pair) for pair in matched)
    else:
        sizes = tuple((point.height, point.width) for point in (*points[0], *points[1]))
    return TapPair(
        _party(student, plans[0], points[0], needs.student), _party(teacher, plans[1], points[1], needs.teacher), sizes
    )


def _party(
    network: nn.Module | None, plan: TapPlan | None, points: tuple[TapPoint, ...], kinds: AbstractSet[Kind]
) -> Party:
    if network is None or plan is None:
        return Party()
    classifier = None
    if "classifier" in kinds:
        if plan.classifier is None:
            raise TapError(f"{plan.model}: no module of it is its last linear layer")
        classifier = network.get_submodule(plan.classifier)
    taken = kinds - {"logits", "classifier"}
    taps = Taps(network, replace(plan, points=points), taken) if taken else None
    averaged = (1, 1) if plan.averaged is None else (plan.averaged.height, plan.averaged.width)
    return Party(points, taps, plan.features, classifier, plan.unpaired, averaged, plan.last)


def pair_stages(teacher: TapPlan, student: TapPlan) -> list[Pair]:
    """Pair every stage of the network that has fewer with one of the other, in order, the last with the last.

    Equal numbers of stages pair one to one. Otherwise, of all pairings in order that end with both last stages, the one
    whose map sizes differ least (sum of absolute differences of log2 of the map's side) is taken, and of equals the one
    that lies closest to the end.

    Returns:
        (teacher's point, student's point) for every pair, from the images to the logits.
    """
    short, long = sorted((teacher.points, student.points), key=len)

    def distance(chosen: tuple[TapPoint, ...]) -> float:
        return sum(abs(_side(a) - _side(b)) for a, b in zip(short, chosen, strict=True))

    choices = ((*earlier, long[-1]) for earlier in combinations(long[:-1], len(short) - 1))
    best = min(choices, key=lambda chosen: (round(distance(chosen), 9), [-point.stage for point in chosen]))
    if short is teacher.points:
        return list(zip(short, best, strict=True))
    return list(zip(best, short, strict=True))


def _side(point: TapPoint) -> float:
    return math.log2(point.height * point.width) / 2


def match_size(feature_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of a map to ``size`` (height, width); the map itself if it has that size."""
    if feature_BCHW.shape[2:] == size:
        return feature_BCHW
    return F.adaptive_avg_pool2d(feature_BCHW, size)


def common_size(teacher: TapPoint, student: TapPoint) -> tuple[int, int]:
    """The size at which a pair is compared: the smaller height and the smaller width, so that maps are only pooled."""
    return min(teacher.height, student.height), min(teacher.width, student.width)


def describe_pair(teacher: TapPlan, student: TapPlan) -> str:
    """The taps of a teacher and a student as a table for people."""
    side = ("before", "shape", "norm")
    head = ("stage", "teacher tap", *side, "student tap", *side, "compared at", "channels each")
    rows = [head]
    for index, (teacher_stage, student_stage) in enumerate(pair_stages(teacher, student)):
        height, width = common_size(teacher_stage, student_stage)
        ends = f"{height}x{width}", f"{teacher_stage.channels / student_stage.channels:.3g}"
        rows.append((str(index), *_cells(teacher_stage), *_cells(student_stage), *ends))
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*map(_title, ("teacher", "student"), (teacher, student)), "", *lines])


def _title(role: str, plan: TapPlan) -> str:
    embedding = "" if plan.embedding is None else f", embedding of {plan.features} features"
    embedding += "" if plan.averaged is None else f", the mean of {plan.averaged.shape}"
    prefix = plan.points[-1].prefix_tokens
    embedding += f", {prefix} tokens before the image's" if prefix > 1 else ""
    return f"{role} {plan.model} at {plan.input_size}x{plan.input_size}: stages by {plan.found}{embedding}"


def _cells(point: TapPoint) -> tuple[str, str, str, str]:
    norms = "-" if point.norms is None else _last_of(point.norms)
    return _last_of([str(source) for source in point.sources]), point.activation or "-", point.shape, norms


def _last_of(items: Sequence[str]) -> str:
    return items[-1] + (f" +{len(items) - 1}" if len(items) > 1 else "")
