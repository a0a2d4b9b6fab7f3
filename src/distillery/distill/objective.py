"""The loss of a run: the weighted sum of the terms that its objective names."""

from collections.abc import Callable, Iterator
from importlib import import_module

import torch
from torch import Tensor, nn

from distillery.distill.step import StepInputs
from distillery.distill.term import CalibrationBatches, Term, TermContext
from distillery.experiment.schema.objective import Objective


class WeightedTerms(nn.Module):
    """The sum of weight x value over the terms; a weight is a function of the epoch."""

    def __init__(self, terms: dict[str, Term], weights: dict[str, Callable[[int], float]]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = weights

    def each(self) -> Iterator[tuple[str, Term]]:
        """The terms by name."""
        for name, term in self.terms.items():
            assert isinstance(term, Term)
            yield name, term

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Return every term's unweighted value by name, and their weighted sum as ``loss``."""
        with torch.autocast(inputs.student.logits_BC.device.type, enabled=False):
            inputs = inputs.widened()
            values = {name: term(inputs) for name, term in self.each()}
        epoch = int(inputs.epoch)
        total = torch.stack([self.weights[name](epoch) * value for name, value in values.items()]).sum()
        return {"loss": total, **values}

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Let every term act before an epoch's first step."""
        for _, term in self.each():
            term.begin_epoch(epoch, calibration_batches)

    def end_step(self) -> None:
        """Let every term act after an optimizer step."""
        for _, term in self.each():
            term.end_step()

    def own_buffers(self) -> list[str]:
        """Names of the buffers that terms keep equal on all ranks themselves."""
        return [f"terms.{name}.{buffer}" for name, term in self.each() for buffer in term.own_buffers]


def build_objective(config: Objective, context: TermContext | None = None) -> WeightedTerms:
    """Build the terms that a run's configuration names, set up with the run's networks."""
    terms: dict[str, Term] = {}
    for name, options in config.terms().items():
        module, _, term = options.implementation.partition(":")
        terms[name] = getattr(import_module(module), term)(**options.model_dump(exclude={"weight"}))
        terms[name].setup(context or TermContext())
    return WeightedTerms(terms, {name: options.weight_at for name, options in config.terms().items()})
