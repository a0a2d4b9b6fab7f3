"""The teacher's side of a step: a network that only answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from distillery.distill.step import Outputs
from distillery.distill.student import FeatureExtractor


class Teacher:
    """A frozen network that only answers.

    It is no submodule of anything: DDP never wraps it, the optimizer never sees it, no checkpoint holds it, and nothing
    that the learner does puts it into another mode. It normalises its input by its own statistics.

    By ``norm`` its batch norms use their running statistics (``eval``), or those of the batch (``batch``) as Overhaul's
    authors do; the running ones never move.
    """

    def __init__(self, extractor: FeatureExtractor, norm: Literal["eval", "batch"]) -> None:
        self.extractor = extractor
        extractor.network.eval().requires_grad_(False)
        self.batch_norms = [module for module in extractor.network.modules() if isinstance(module, _BatchNorm)]
        for module in self.batch_norms:
            module.momentum = 0.0
        self._use_batch_statistics(norm == "batch")
        self.norm = norm

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Answer for uint8 images (B, 3, H, W), without gradient."""
        return self.extractor(images)

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
