"""The teacher's side of a step: a network that only answers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillery.distill.bank import Address, Bank
from distillery.distill.precision import at_least_float32
from distillery.distill.step import Outputs
from distillery.distill.student import FeatureExtractor
from distillery.experiment.schema.teacher import TeacherMean


def mean_outputs(each: Sequence[Outputs], weights: Sequence[float], of: TeacherMean) -> Outputs:
    """Several teachers' outputs as one: their logits' weighted mean, or the logarithm of their probabilities'.

    The weights are divided by their sum. A teacher without logits leaves the mean without any.
    """
    shares = [weight / sum(weights) for weight in weights]
    if len({outputs.logits_BC.shape for outputs in each}) > 1 or not each[0].logits_BC.shape[1]:
        return Outputs(each[0].logits_BC[:, :0], each_teacher=tuple(each))
    logits = [at_least_float32(outputs.logits_BC) for outputs in each]
    if of == "logits":
        mean_BC = torch.stack([share * own for share, own in zip(shares, logits, strict=True)]).sum(dim=0)
    else:
        parts = [own.log_softmax(dim=1) + math.log(share) for share, own in zip(shares, logits, strict=True)]
        mean_BC = torch.stack(parts).logsumexp(dim=0)
    return Outputs(mean_BC, each_teacher=tuple(each))


class Teacher:
    """A frozen network that only answers.

    It is no submodule of anything: DDP never wraps it, the optimizer never sees it, no checkpoint holds it, and nothing
    that the learner does puts it into another mode. It normalises its input by its own statistics.

    By ``norm`` its batch norms use their running statistics (``eval``), or those of the batch (``batch``) as Overhaul's
    authors do; the running ones never move.
    """

    def __init__(self, extractor: FeatureExtractor, norm: Literal["eval", "batch"]) -> None:
        self.extractor = extractor
        extractor.network.requires_grad_(False)
        self.batch_norms = [module for module in extractor.network.modules() if isinstance(module, _BatchNorm)]
        for module in self.batch_norms:
            module.momentum = 0.0
        self.norm = norm
        self.settle()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Answer for uint8 images (B, 3, H, W), without gradient."""
        return self.extractor(images)

    def settle(self) -> None:
        """Put the network into the mode that it answers in."""
        self.extractor.network.eval()
        self._use_batch_statistics(self.norm == "batch")

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Use the running statistics for a while, whatever ``norm`` is."""
        self._use_batch_statistics(False)
        try:
            yield
        finally:
            self._use_batch_statistics(self.norm == "batch")

    def _use_batch_statistics(self, batch: bool) -> None:
        for module in self.batch_norms:
            module.train(batch)


@dataclass(frozen=True)
class Source:
    """Where one of several teachers' answers come from: the teacher itself, or the bank that it has filled.

    ``square`` says which squares it is shown: 0 for the student's, else a place, from 1, among those of teachers.
    """

    answering: Teacher | Bank
    weight: float
    square: int = 0


@dataclass(frozen=True)
class Several:
    """Several teachers, each live or in a bank."""

    sources: tuple[Source, ...]
    of: TeacherMean

    @property
    def networks(self) -> list[nn.Module]:
        """Those of the live ones."""
        answering = [source.answering for source in self.sources]
        return [one.extractor.network for one in answering if isinstance(one, Teacher)]

    def stored(self, batches: Iterable[Sequence[Address]], pin_memory: bool) -> Iterator[tuple[Outputs, ...]]:
        """What the banks have of each batch of addresses, in their order."""
        banks = [source.answering for source in self.sources if isinstance(source.answering, Bank)]
        if not banks:
            return repeat(())
        return zip(*(bank.answers(batches, pin_memory) for bank in banks), strict=True)

    def answer(self, squares: Sequence[Tensor], stored: Sequence[Outputs]) -> Outputs:
        """All that the teachers say of a batch, given the squares by place and what banks hold, on the device."""
        found = iter(stored)
        each = [
            source.answering(squares[source.square]) if isinstance(source.answering, Teacher) else next(found)
            for source in self.sources
        ]
        return mean_outputs(each, [source.weight for source in self.sources], self.of)
