"""A student, its teacher and an objective put together: taps, heads, terms, and the modules that training runs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from distillery.distill.objective import build_objective
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Teacher
from distillery.distill.term import TermContext
from distillery.errors import located
from distillery.experiment.schema.objective import Objective
from distillery.models.composite import Composite
from distillery.models.taps import TapPair, Taps, pair_networks


@dataclass(frozen=True)
class Side:
    """One network: what it is called in errors, the size of its images in pixels, and what makes its input of them."""

    network: nn.Module
    name: str
    size: int
    normalize: nn.Module


class Assembled(NamedTuple):
    """What training runs. ``head`` is what a run.json says of the head that is deployed with the student."""

    learner: Learner
    teacher: Teacher | None
    head: dict[str, Any] | None


def assemble(
    student: Side,
    teacher: Side | None,
    config: Objective,
    context: Callable[[TapPair], TermContext],
    *,
    teacher_norm: Literal["eval", "batch"] = "eval",
    channels_last: bool = False,
    where: str = "",
    convert: Callable[[nn.Module], nn.Module] = lambda module: module,
    check: Callable[[nn.Module], None] = lambda network: None,
) -> Assembled:
    """Tap both networks, build the terms, and put a term's head on the student.

    Args:
        student: the network that learns; a head replaces its last layer, in place.
        teacher: the network that answers; it is frozen, in place. None where no term learns from one.
        config: the terms and their weights.
        context: what terms know of the run, once it is known how the networks pair.
        teacher_norm: by which statistics the teacher's batch norms work.
        channels_last: the memory format of both networks and their images.
        where: stands before errors that begin with a key of the objective.
        convert: changes the modules that terms bring, as to synchronised batch norms.
        check: looks at a student that has got a head.

    Raises:
        UserError: a network does not have what a term asks for, or a term cannot work with it.
    """
    needs, network = config.needs(), student.network
    names = student.name, teacher.name if teacher else ""
    sizes = student.size, teacher.size if teacher else student.size
    pair = pair_networks(network, teacher.network if teacher else None, needs, sizes[0], names, sizes[1])
    known = context(pair)
    with located(where) if where else nullcontext():
        objective = build_objective(config, known)
    heads = [(name, head) for name, term in objective.each() if (head := term.head(known)) is not None]
    taps, described = pair.student.taps, None
    for name, head in heads:
        described = {"term": name, "arguments": head.arguments}
        network = Composite(network, convert(head), student.size, student.name)  # type: ignore[arg-type]
        taps = Taps(network.network, taps.plan, taps.kinds) if taps is not None else None
        check(network)
    objective.terms = convert(objective.terms)  # type: ignore[assignment]
    extractor = FeatureExtractor(network, student.normalize, taps, pair.sizes, channels_last, needs.unpooled)
    learner = Learner(extractor, objective, partners=needs.partner)
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if teacher is None:
        return Assembled(learner, None, described)
    if channels_last:
        teacher.network.to(memory_format=torch.channels_last)
    shown = FeatureExtractor(
        teacher.network, teacher.normalize, pair.teacher.taps, pair.sizes, channels_last, needs.unpooled
    )
    return Assembled(learner, Teacher(shown, teacher_norm), described)
