"""The loss of a run: the weighted sum of the terms that its objective names."""

from importlib import import_module

import torch
from torch import Tensor, nn

from distillery.config.schema.objective import Objective
from distillery.objectives.term import Lesson, Setting, Survey, Term
from distillery.objectives.terms import TERMS


class WeightedTerms(nn.Module):
    """The sum of weight x value over the terms."""

    def __init__(self, terms: dict[str, Term], weights: dict[str, float]) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.weights = weights

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        """Return every term's unweighted value by name, and their weighted sum as ``loss``."""
        with torch.autocast(lesson.student.logits_BC.device.type, enabled=False):
            lesson = lesson.widened()
            values = {name: term(lesson) for name, term in self.terms.items()}
        total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return {"loss": total, **values}

    def begin_epoch(self, epoch: int, survey: Survey) -> None:
        """Let every term act before an epoch's first step."""
        for term in self.terms.values():
            assert isinstance(term, Term)
            term.begin_epoch(epoch, survey)


def build_objective(config: Objective, setting: Setting | None = None) -> WeightedTerms:
    """Build the terms that a run's configuration names, settled with the run's networks."""
    terms, weights = {}, {}
    for name, options in config.terms().items():
        keywords = options.model_dump()
        weights[name] = keywords.pop("weight")
        module, _, term = TERMS[name].partition(":")
        terms[name] = getattr(import_module(module), term)(**keywords)
        terms[name].settle(setting or Setting())
    return WeightedTerms(terms, weights)
