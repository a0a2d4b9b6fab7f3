"""Mixup and cutmix: a function of the global batch, the same for any number of devices and micro-batches.

B batch, C classes, H height, W width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.experiment.schema.recipe import Mix, Recipe
from distillery.randomness import seed_generators
from distillery.training.job import Job


class Mixing:
    """timm's Mixup: one draw, of mixup or cutmix, for all of a step's images, the first of which meets the last.

    Micro-batches and ranks hold both images of each pair (``GlobalBatches`` with ``paired``), so that in each, too, the
    first meets the last.
    """

    def __init__(self, mix: Mix, classes: int, seed: int) -> None:
        from timm.data.mixup import Mixup

        self._seed = seed
        self._mixup = Mixup(  # type: ignore[no-untyped-call]
            mixup_alpha=mix.mixup,
            cutmix_alpha=mix.cutmix,
            prob=mix.p,
            switch_prob=mix.switch,
            mode="batch",
            label_smoothing=0.0,
            num_classes=classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix images (B, 3, H, W), uint8 or float, of labels (B,); return floats and soft targets (B, C)."""
        self._draw_for(epoch, step)
        # Without labels nothing looks at the target, but what makes it takes classes only.
        mixed: tuple[Tensor, Tensor] = self._mixup(_floats(images), labels.clamp(min=0))
        return mixed

    def alike(self, images: Tensor, size: int, epoch: int, step: int) -> Tensor:
        """Mix a teacher's squares (B, 3, H, W) as those of the student, which have ``size`` pixels a side.

        A pair of a black and a white image shows which share of each pixel the partner gives.
        """
        self._draw_for(epoch, step)
        pair = torch.stack([torch.zeros(1, size, size), torch.ones(1, size, size)]).to(images.device)
        share_1HW = self._mixup(pair, torch.zeros(2, dtype=torch.long, device=images.device))[0][0]
        share_1HW = F.interpolate(share_1HW[None], images.shape[2:])[0]
        images = _floats(images)
        return images.lerp(images.flip(0), share_1HW.expand_as(images[0]))

    def _draw_for(self, epoch: int, step: int) -> None:
        seed_generators(self._seed, "mix", epoch, step, 0, 0)


def mixing_of(job: Job, recipe: Recipe) -> Mixing | None:
    """How a run mixes its images; None where it does not."""
    return None if recipe.mix is None else Mixing(recipe.mix, len(job.manifest.classes), job.seed)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images
