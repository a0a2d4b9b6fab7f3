"""How images become what a network was trained to see: floats in [0, 1], minus the mean, over the deviation.

B batch, H and W height and width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.experiment.schema.block import IMAGENET, Statistics, Triple
from distillery.experiment.schema.recipe import Preprocess


class Normalize(nn.Module):
    """Normalise a batch on its device; images travel there as bytes, a quarter of the floats' size.

    Every network brings its own, so that a student and a teacher with other statistics read the same images. Nothing
    here is trained, and nothing enters a state dict: the statistics stand in run.json.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return float32 ``(B, 3, H, W)`` for uint8 in [0, 255] or floats in [0, 1] of this shape."""
        if images_B3HW.dtype != torch.uint8:
            return (images_B3HW.to(torch.float32) - self.mean) / self.std
        # In place, for the floats are our own: fresh memory for each step would take most of the time.
        return images_B3HW.to(torch.float32).div_(255).sub_(self.mean).div_(self.std)

    def extra_repr(self) -> str:
        """The statistics, for printed networks."""
        return f"mean={self.mean.flatten().tolist()}, std={self.std.flatten().tolist()}"


def resolve_statistics(preprocess: Preprocess, training_images: Statistics) -> tuple[Triple, Triple]:
    """Find the mean and standard deviation that ``preprocess.normalize`` asks for.

    Raises:
        UserError: a channel of the training images is constant, so that nothing can be divided by its deviation.
    """
    if isinstance(preprocess.normalize, Statistics):
        return preprocess.normalize.mean, preprocess.normalize.std
    if preprocess.normalize == "imagenet":
        return IMAGENET.mean, IMAGENET.std
    if preprocess.normalize == "none":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = training_images.mean, training_images.std
    if min(std) <= 0:
        raise UserError(
            f"preprocess.normalize: the training images' deviations are {std} (red, green, blue), and nothing can be "
            "divided by 0; write normalize: none, or {mean: [...], std: [...]}"
        )
    return mean, std
