"""The student's side of a step: features out of a network, and the module that DDP wraps.

B batch, C classes, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillery.distill.objective import WeightedTerms
from distillery.distill.step import NO_MAPS, Labelled, Maps, Outputs, StepInputs, View
from distillery.models import has_classifier
from distillery.models.composite import Composite
from distillery.models.taps import Size, Taps, match_size


class FeatureExtractor:
    """Shows images to a network and returns what the objective may see of it.

    Args:
        network: takes normalised images.
        normalize: takes uint8 (or [0, 1] float) images (B, 3, H, W).
        taps: where to take features; None for objectives that look at logits only.
        sizes: the height and width to which each stage's map is pooled.
        channels_last: memory format of the images.
        unpooled: whether the maps are wanted at their own sizes, too.
    """

    def __init__(
        self,
        network: nn.Module,
        normalize: nn.Module,
        taps: Taps | None,
        sizes: Sequence[Size],
        channels_last: bool,
        unpooled: bool = False,
    ) -> None:
        self.network, self.normalize, self.taps, self.sizes = network, normalize, taps, sizes
        self.unpooled, self.gives_logits = unpooled, has_classifier(network)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.lender: FeatureExtractor | None = None
        self._lends = False
        self._lent: tuple[Tensor, Tensor, int] | None = None

    def borrow(self, other: "FeatureExtractor") -> None:
        """From now on, take the normalised images that another network was just shown, if it normalises alike."""
        own, others = [*self.normalize.buffers()], [*other.normalize.buffers()]
        if self.memory_format == other.memory_format and len(own) == len(others) and all(map(torch.equal, own, others)):
            self.lender, other._lends = other, True

    def __call__(self, images: Tensor) -> Outputs:
        """Return logits, and the features that the taps give."""
        pixels = self._pixels(images)
        if self.taps is None:
            logits_BC, head = self._run(pixels)
            return Outputs(logits_BC, head=head)
        with self.taps.record() as features:
            logits_BC, head = self._run(pixels)
        maps = Maps(tuple(features.stages), tuple(features.activations), tuple(features.raw))
        stages, activations, raw = map(self._matched, maps)
        unpooled = maps if self.unpooled else NO_MAPS
        once = tuple(features.tokens), unpooled, tuple(features.unpaired), features.averaged, head, features.last
        return Outputs(logits_BC, stages, features.embedding, activations, raw, *once)

    def _pixels(self, images: Tensor) -> Tensor:
        if self.lender is not None and self.lender._lent is not None:
            (shown, lent, version), self.lender._lent = self.lender._lent, None
            # A network may have written into what it was shown.
            if shown is images and lent._version == version:
                return lent
        pixels: Tensor = self.normalize(images).contiguous(memory_format=self.memory_format)
        if self._lends:
            self._lent = images, pixels, pixels._version
        return pixels

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        if isinstance(self.network, Composite):
            return self.network.run(pixels)
        output: Tensor = self.network(pixels)
        # Without a classifier it is the embedding, which the taps take.
        return output if self.gives_logits else output[:, :0], None

    def _matched(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Empty where that kind of map is not wanted.
        return tuple(match_size(feature, size) for feature, size in zip(maps, self.sizes, strict=bool(maps)))


class Learner(nn.Module):
    """The student, the normalisation of its input, and its objective: all that is optimised, in one module for DDP.

    ``partners`` says that a second view shows other images of the classes: the student looks at them after the batch,
    without gradient, and the teacher does not.
    """

    def __init__(self, extractor: FeatureExtractor, objective: WeightedTerms, partners: bool = False) -> None:
        super().__init__()
        self.partners = partners
        self.student, self.normalize, self.objective = extractor.network, extractor.normalize, objective
        self.extractor = extractor

    def forward(
        self,
        images: Tensor,
        target: Tensor,
        teacher: Outputs | None = None,
        batch_fraction: float = 1.0,
        epoch: float = 0.0,
        indices_B: Tensor | None = None,
        view: tuple[Tensor, Outputs | None] | None = None,
        labelled: Labelled | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the objective's values (``loss`` is what to minimise) and the student's logits (B, C).

        The arguments are those of ``StepInputs``, with images where it holds the student's outputs; ``view`` is the
        second view's images and the teacher's outputs for them.
        """
        student = self.extractor(images)
        seen = None
        if view is not None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.partners):
                seen = View(self.extractor(view[0]), view[1])
        inputs = StepInputs(student, target, teacher, batch_fraction, epoch, indices_B, seen, labelled)
        return self.objective(inputs), student.logits_BC
