"""The two parties of a inputs: the learner, whose weights move, and the teacher, whose weights do not.

B batch, C classes, H W pixels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillery.distill.objective import WeightedTerms
from distillery.distill.term import Outputs, StepInputs
from distillery.models.taps import Taps, match_size

Size = tuple[int, int]


class FeatureExtractor:
    """Shows images to a network and returns what the objective may see of it.

    Args:
        network: takes normalised images.
        normalize: takes uint8 (or [0, 1] float) images (B, 3, H, W).
        taps: where to take features; None for objectives that look at logits only.
        sizes: the height and width to which each stage's map is pooled.
        channels_last: memory format of the images.
    """

    def __init__(
        self, network: nn.Module, normalize: nn.Module, taps: Taps | None, sizes: list[Size], channels_last: bool
    ) -> None:
        self.network, self.normalize, self.taps, self.sizes = network, normalize, taps, sizes
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Outputs:
        """Return logits, and the stages and vector that the taps give."""
        pixels = self.normalize(images).contiguous(memory_format=self.memory_format)
        if self.taps is None:
            return Outputs(self.network(pixels))
        with self.taps.record() as features:
            logits_BC = self.network(pixels)
        stages = tuple(match_size(feature, size) for feature, size in zip(features.maps, self.sizes, strict=True))
        return Outputs(logits_BC, stages, features.embedding)


class Learner(nn.Module):
    """The student, the normalisation of its input, and its objective: all that is optimised, in one module for DDP.

    Tensors come in and go out as plain arguments, because precision and DDP wrappers look inside those only.
    """

    def __init__(self, view: FeatureExtractor, objective: WeightedTerms) -> None:
        super().__init__()
        self.student, self.normalize, self.objective = view.network, view.normalize, objective
        self.view = view

    def forward(
        self, images: Tensor, target: Tensor, teacher: tuple[Tensor, ...] | None, batch_fraction: float = 1.0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the objective's values (``loss`` is what to minimise) and the student's logits (B, C).

        ``teacher`` holds its logits and then its stages.
        """
        student = self.view(images)
        taught = None if teacher is None else Outputs(teacher[0], teacher[1:])
        return self.objective(StepInputs(student, target, taught, batch_fraction)), student.logits_BC


class Teacher:
    """A frozen network that only answers.

    It is no submodule of anything: DDP never wraps it, the optimizer never sees it, no checkpoint holds it, and nothing
    that the learner does puts it into another mode. It normalises its input by its own statistics.

    Args:
        view: shows images to it.
        norm: whether its batch norms use their running statistics (``eval``), or those of the batch (``batch``) as
            Overhaul's authors do; the running ones never move.
    """

    def __init__(self, view: FeatureExtractor, norm: Literal["eval", "batch"]) -> None:
        self.view = view
        view.network.eval().requires_grad_(False)
        self.batch_norms = [module for module in view.network.modules() if isinstance(module, _BatchNorm)]
        for module in self.batch_norms:
            module.momentum = 0.0
        self._use_batch_statistics(norm == "batch")
        self.norm = norm

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Outputs:
        """Answer for uint8 images (B, 3, H, W), without gradient."""
        return self.view(images)

    def tensors(self, images: Tensor) -> tuple[Tensor, ...]:
        """The answer as plain tensors: logits (B, C), then the stages."""
        outputs = self(images)
        return (outputs.logits_BC, *outputs.stages)

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
