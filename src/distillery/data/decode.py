"""From encoded bytes to RGB pixels, by Pillow's rules.

Every kind of image becomes 8-bit RGB as Pillow's ``convert("RGB")`` has it, which is what torchvision's ImageFolder
trains on: greyscale is repeated in three channels, palettes are looked up, alpha is dropped without blending, CMYK is
converted without a colour profile (Adobe's inverted CMYK is turned right by Pillow's reader), 1-bit becomes black and
white, and greyscale of 16 and more bits is clipped at 255. Of an animation the first frame counts. The EXIF
orientation is ignored.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # torch stays out of the processes that prepare data
    from torch import Tensor

# Modes whose values do not fit 8 bits: whatever is above 255 becomes white.
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


def decode_rgb(encoded: bytes | memoryview) -> Tensor:
    """Decode an image file's bytes to uint8 RGB, shape (3, H, W)."""
    import torch

    pixels_HWC = np.array(as_rgb(Image.open(BytesIO(encoded))))
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).contiguous()


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB; the image itself where it is RGB already."""
    if image.mode == "RGB":
        return image
    # Pillow would warn about each palette with alpha and then drop the alpha: the very thing that is wanted.
    image.info.pop("transparency", None)
    return image.convert("RGB")
