"""The loss of a run: the weighted sum of the terms that its objective names."""

from importlib import import_module

import torch
from torch import Tensor, nn

from distillery.distill.registry import TERMS
from distillery.distill.term import CalibrationBatches, StepInputs, Term, TermContext
from distillery.experiment.schema.objective import Objective


class WeightedTerms(nn.Module):
    """The sum of weight x value over the terms."""

    def __init__(self, terms: dict[str, Term], weights: dict[str, float]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = weights

    def forward(self, inputs: StepInputs) -> dict[str, Tensor]:
        """Return every term's unweighted value by name, and their weighted sum as ``loss``."""
        with torch.autocast(inputs.student.logits_BC.device.type, enabled=False):
            inputs = inputs.widened()
            values = {name: term(inputs) for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return {"loss": total, **values}

    def begin_epoch(self, epoch: int, calibration_batches: CalibrationBatches) -> None:
        """Let every term act before an epoch's first step."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            term.begin_epoch(epoch, calibration_batches)


def build_objective(config: Objective, context: TermContext | None = None) -> WeightedTerms:
    """Build the terms that a run's configuration names, set up with the run's networks."""
    terms, weights = {}, {}
    for name, options in config.terms().items():
        keywords = options.model_dump()
        weights[name] = keywords.pop("weight")
        module, _, term = TERMS[name].partition(":")
        terms[name] = getattr(import_module(module), term)(**keywords)
        terms[name].setup(context or TermContext())
    return WeightedTerms(terms, weights)
