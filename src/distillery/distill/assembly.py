"""A student, its teachers and an objective put together: taps, heads, terms, and the modules that training runs."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Teacher
from distillery.distill.term import TermContext, pair_context
from distillery.errors import located
from distillery.experiment.schema.objective import STAGEWISE, Needs, Objective
from distillery.models.composite import Composite
from distillery.models.taps import Party, TapPair, Taps, pair_networks


@dataclass(frozen=True)
class Side:
    """One network: what it is called in errors, the size of its images in pixels, and what makes its input of them."""

    network: nn.Module
    name: str
    size: int
    normalize: nn.Module


@dataclass(frozen=True)
class TeacherSide(Side):
    """A network that answers.

    Attributes:
        called: how the objective calls it, where there are several.
        known: the classes that it knows, ascending, where it does not know all.
        origin: gives the network, like it, whose batch norms make the margins of its stages; by default itself.
    """

    called: str | None = None
    known: Sequence[int] | None = None
    origin: Callable[[], nn.Module] | None = None


class Assembled(NamedTuple):
    """What training runs.

    Attributes:
        learner: the student with its objective.
        teachers: in their order.
        head: what a run.json says of the head that is deployed with the student.
        paired: of several teachers, the place of the one whose stages are paired with the student's.
    """

    learner: Learner
    teachers: list[Teacher]
    head: dict[str, Any] | None
    paired: int


def assemble(
    student: Side,
    teachers: Sequence[TeacherSide],
    config: Objective,
    run: TermContext,
    *,
    teacher_norm: Literal["eval", "batch"] = "eval",
    channels_last: bool = False,
    where: str = "",
    convert: Callable[[nn.Module], nn.Module] = lambda module: module,
    check: Callable[[nn.Module], None] = lambda network: None,
) -> Assembled:
    """Tap the networks, build the terms, and put a term's head on the student.

    Args:
        student: the network that learns; a head replaces its last layer, in place.
        teachers: the networks that answer; they are frozen, in place. Empty where no term learns from one.
        config: the terms and their weights.
        run: what terms know of the run, its networks apart.
        teacher_norm: by which statistics the teachers' batch norms work.
        channels_last: the memory format of all networks and their images.
        where: stands before errors that begin with a key of the objective.
        convert: changes the modules that terms bring, as to synchronised batch norms.
        check: looks at a student that has got a head.

    Raises:
        UserError: a network does not have what a term asks for, or a term cannot work with it.
    """
    needs, network = config.needs(), student.network
    asked = [config.of_teacher(one.called).needs() if one.called else needs for one in teachers]
    paired = next((place for place, own in enumerate(asked) if own.teacher & STAGEWISE), 0)
    first = teachers[paired] if teachers else None
    pair = pair_networks(
        network,
        first.network if first else None,
        replace(needs, teacher=asked[paired].teacher) if first else needs,
        student.size,
        (student.name, first.name if first else ""),
        first.size if first else None,
    )
    pairs = [
        pair if one is first else replace(pair, teacher=tap_alone(one, own))
        for one, own in zip(teachers, asked, strict=True)
    ]
    each = [
        pair_context(met, _margins(one, met) if own.margins else [], run)
        for one, own, met in zip(teachers, asked, pairs, strict=True)
    ]
    context = each[paired] if each else pair_context(pair, [], run)
    contexts = {one.called: own for one, own in zip(teachers, each, strict=True) if one.called}
    known = {one.called: one.known for one in teachers if one.known is not None}
    with located(where) if where else nullcontext():
        objective = build_objective(config, context, known, contexts)
    named = {name: options.teacher or "" for name, options in config.terms().items()}
    heads = [
        (name, head)
        for name, term in objective.each()
        if (head := term.head(contexts.get(named[name], context))) is not None
    ]
    taps, described = pair.student.taps, None
    for name, head in heads:
        described = {"term": name, "arguments": head.arguments}
        network = Composite(network, convert(head), student.size, student.name)  # type: ignore[arg-type]
        taps = Taps(network.network, taps.plan, taps.kinds) if taps is not None else None
        check(network)
    objective.terms = convert(objective.terms)  # type: ignore[assignment]
    extractor = FeatureExtractor(network, student.normalize, taps, pair.sizes, channels_last, needs.unpooled)
    learner = Learner(extractor, objective, partners=needs.partner)
    network.to(memory_format=extractor.memory_format)
    answering = []
    for one, met in zip(teachers, pairs, strict=True):
        if channels_last:
            one.network.to(memory_format=torch.channels_last)
        shown = FeatureExtractor(one.network, one.normalize, met.teacher.taps, met.sizes, channels_last, needs.unpooled)
        answering.append(Teacher(shown, teacher_norm))
    return Assembled(learner, answering, described, paired)


def tap_alone(teacher: Side, needs: Needs) -> Party:
    """A teacher with its taps, where no stages are wanted that a student's could be paired with."""
    names = (teacher.name, teacher.name)
    return pair_networks(teacher.network, teacher.network, Needs(teacher=needs.teacher), teacher.size, names).teacher


def _margins(teacher: TeacherSide, pair: TapPair) -> list[Tensor | None]:
    """The margins of a teacher's stages, from its own batch norms or from those of its origin."""
    device = next(teacher.network.parameters()).device
    norms = pair.norms(teacher.origin() if teacher.origin is not None else teacher.network)
    return [None if norm is None else bn_margin(*norm).to(device) for norm in norms]
