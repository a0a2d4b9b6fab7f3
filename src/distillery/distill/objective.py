"""The loss of a run: the weighted sum of the terms that its objective names."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from importlib import import_module
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn

from distillery.distill.precision import without_autocast
from distillery.distill.step import Labelled, StepInputs
from distillery.distill.term import CalibrationBatches, Term, TermContext
from distillery.errors import UserError
from distillery.experiment.schema.objective import Objective


class WeightedTerms(nn.Module):
    """The sum of weight x value over the terms; a weight is a function of the epoch.

    The terms of ``by_labels`` see the images that have labels; the others see all. A term whose teacher knows some
    classes only has them, ascending, in ``known``: it sees these, and by labels their images. Of several teachers, a
    term sees the one whose place ``of_teacher`` has, or their mean.
    """

    def __init__(
        self,
        terms: dict[str, Term],
        weights: dict[str, Callable[[int], float]],
        by_labels: AbstractSet[str] = frozenset(),
        known: Mapping[str, Sequence[int]] = MappingProxyType({}),
        of_teacher: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = weights
        # Most terms do nothing at a step's end.
        self.ending = [term for term in terms.values() if type(term).end_step is not Term.end_step]
        self.by_labels, self.partly, self.of_teacher = by_labels, frozenset(known), of_teacher
        for name, classes in known.items():
            self.register_buffer(f"known_{name}", torch.tensor(classes), persistent=False)

    def each(self) -> Iterable[tuple[str, Term]]:
        """The terms by name."""
        return cast(Iterable[tuple[str, Term]], self.terms.items())

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Return every term's unweighted value by name, and their weighted sum as ``loss``."""
        with without_autocast(inputs.student.logits_BC):
            inputs = inputs.widened()
            values = {name: self._value(name, term, inputs) for name, term in self.each()}
        epoch = int(inputs.epoch)
        weights = {name: self.weights[name](epoch) for name in values}
        # A factor of 1, which changes no bit, is left out: autograd would follow it.
        parts = [value if weights[name] == 1 else weights[name] * value for name, value in values.items()]
        # Of one or two, the bits of torch's sum, which begins with 0, without what autograd would do for a stack.
        total = torch.stack(parts).sum() if len(parts) > 2 else sum(parts[1:], parts[0] + 0)
        return {"loss": total, **values}

    def _value(self, name: str, term: Term, inputs: StepInputs) -> Tensor:
        labelled_rows = inputs.labelled
        if inputs.teacher is not None and inputs.teacher.each_teacher:
            place = self.of_teacher.get(name)
            own = inputs.teacher._replace(each_teacher=()) if place is None else inputs.teacher.each_teacher[place]
            inputs = inputs._replace(teacher=own)
        if name in self.partly:
            inputs = inputs.among(self.get_buffer(f"known_{name}"))
            told_B = inputs.target >= 0 if inputs.target.ndim == 1 else inputs.target.sum(dim=1) > 0
            labelled_rows = Labelled(told_B.nonzero()[:, 0], labelled_rows.share if labelled_rows else 1.0)
        if labelled_rows is None or name not in self.by_labels:
            value: Tensor = term(inputs)
            return value
        rows, share = labelled_rows
        if len(rows) == 0:
            # Zero, with a gradient for all that is trained: other processes wait for it, batch norms in every view.
            trained = [inputs.student.logits_BC, *term.parameters()]
            if inputs.view is not None:
                trained.append(inputs.view.student.logits_BC)
            return torch.stack([value.sum() * 0 for value in trained]).sum()
        # The mean over this part's labelled images, as its share of the mean over those of the global batch.
        labelled: Tensor = term(inputs.only(rows))
        return labelled * (len(rows) / len(inputs.target) / share)

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Let every term act before an epoch's first step."""
        for _, term in self.each():
            term.begin_epoch(epoch, calibration_batches)

    def end_step(self) -> None:
        """Let every term act after an optimizer step."""
        for term in self.ending:
            term.end_step()

    def own_buffers(self) -> list[str]:
        """Names of the buffers that terms keep equal on all ranks themselves."""
        return [f"terms.{name}.{buffer}" for name, term in self.each() for buffer in term.own_buffers]


def check_names(config: Objective) -> None:
    """See that terms of plugins are not called as what torch itself calls of their container.

    Raises:
        UserError: one is, as ``half`` or ``keys``.
    """
    for name in config.terms():
        if hasattr(nn.ModuleDict, name):
            raise UserError(f"objective.{name}: torch keeps this name to itself; give the term of the plugin another")


def build_objective(
    config: Objective,
    context: TermContext | None = None,
    known: Mapping[str | None, Sequence[int]] = MappingProxyType({}),
    others: Mapping[str, TermContext] = MappingProxyType({}),
) -> WeightedTerms:
    """Build the terms that a run's configuration names, set up with the run's networks.

    Args:
        config: the terms, which name their teachers where there are several.
        context: of the run; of several teachers, of those terms that name none.
        known: by teacher, the classes that it knows, ascending, where it does not know all.
        others: of several teachers, each one's context, by name in their order.

    Raises:
        UserError: a term cannot tell the run's classes apart, or has a name that torch needs.
    """
    context = context or TermContext()
    check_names(config)
    if context.classes:
        config.check_classes(context.classes)
    terms: dict[str, Term] = {}
    for name, options in config.terms().items():
        module, _, term = options.implementation.partition(":")
        terms[name] = getattr(import_module(module), term)(**options.model_dump(exclude={"weight", "teacher"}))
        terms[name].setup(others.get(options.teacher or "", context))
    by_labels = {name for name, options in config.terms().items() if options.needs.labels}
    weights: dict[str, Callable[[int], float]] = {name: options.weight_at for name, options in config.terms().items()}
    by_logits = {name: options for name, options in config.terms().items() if "logits" in options.needs.teacher}
    partly = {name: known[options.teacher] for name, options in by_logits.items() if options.teacher in known}
    places = {teacher: place for place, teacher in enumerate(others)}
    named = {name: options.teacher for name, options in config.terms().items() if options.teacher is not None}
    of_teacher = {name: places[teacher] for name, teacher in named.items()}
    return WeightedTerms(terms, weights, by_labels, partly, of_teacher)
