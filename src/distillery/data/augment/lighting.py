"""AlexNet's lighting: one shift of the colours an image, along the principal axes of ImageNet's pixels.

The shift is drawn with the image's other augmentations but added on the device, to floats, as BAKE's ImageNet code adds
it: neither rounded nor clipped, while the images still travel as bytes.

B batch, H W pixels.
"""

import torch
from torch import Tensor

# Krizhevsky et al. 2012, section 4.1, with the values that BAKE's code has: pixels in [0, 1], rows R G B.
EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045], dtype=torch.float64)
EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], dtype=torch.float64
)


def lighting_shift(alpha_3: Tensor) -> Tensor:
    """The shift of red, green and blue, shape (3,), for the multiples ``alpha_3`` of the three axes."""
    return EIGENVECTORS @ (alpha_3.double() * EIGENVALUES)


def draw_shift(std: float) -> Tensor:
    """Draw a shift by torch's global generator: normal multiples of deviation ``std``; float32 (3,)."""
    return lighting_shift(torch.randn(3, dtype=torch.float64) * std).float()


def add_shifts(images_B3HW: Tensor, shifts_B3: Tensor) -> Tensor:
    """Turn bytes into floats in [0, 1] (floats stay) and add each image's shift, which may lead out of that range."""
    if images_B3HW.dtype == torch.uint8:
        images_B3HW = images_B3HW.to(torch.float32) / 255
    return images_B3HW + shifts_B3[:, :, None, None]
