"""From encoded bytes to RGB pixels, by Pillow's rules.

Every kind of image becomes 8-bit RGB as Pillow's ``convert("RGB")`` has it, which is what torchvision's ImageFolder
trains on: greyscale is repeated in three channels, palettes are looked up, alpha is dropped without blending, CMYK is
converted without a colour profile (Adobe's inverted CMYK is turned right by Pillow's reader), 1-bit becomes black and
white, and greyscale of 16 and more bits is clipped at 255. Of an animation the first frame counts. The EXIF
orientation is ignored here; `orientation: exif` of a data set turns images when it is prepared.

JPEGs go straight to libjpeg-turbo, whose pixels Pillow passes on too, less a copy and a conversion. It can also decode
at 1/2, 1/4 or 1/8 of the size, which saves most of the inverse transform.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:  # torch stays out of the processes that prepare data
    from torch import Tensor

# Modes whose values do not fit 8 bits: what is above 255 becomes white.
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})

# By how much libjpeg-turbo can reduce an image at no loss of speed; 1 leaves it whole.
REDUCTIONS = (8, 4, 2, 1)

# What Pillow may take a file for. Others of its readers start programs, as PostScript's does, whatever the file's name.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

_JPEG_START = b"\xff\xd8\xff"
_PNG_START = b"\x89PNG\r\n\x1a\n"


def decode_rgb(encoded: bytes | memoryview, reduction: int = 1) -> Tensor:
    """Decode an image file's bytes to uint8 RGB, shape (3, H, W), the channels innermost in memory.

    ``reduction``, one of REDUCTIONS, divides the sides of a JPEG, rounded up; other kinds must stay whole.
    """
    import torch

    pixels_HWC = decode_plain_jpeg(encoded, reduction)
    if pixels_HWC is None:
        assert reduction == 1, "only JPEGs can be reduced"
        pixels_HWC = np.array(as_rgb(open_image(encoded)))
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def open_image(encoded: bytes | memoryview) -> Image.Image:
    """Open an image file of one of the FORMATS; its pixels are decoded when they are asked for.

    Raises:
        UnidentifiedImageError: it is of another kind.
    """
    return Image.open(BytesIO(encoded), formats=FORMATS)


def image_size(encoded: bytes | memoryview) -> tuple[int, int]:
    """Height and width of an image file, read from its header."""
    header = _jpeg_header(encoded)
    if header is not None:
        return header[:2]
    with open_image(encoded) as image:
        return image.height, image.width


def is_reducible(encoded: bytes | memoryview) -> bool:
    """Whether ``decode_rgb`` can reduce the image: it is a JPEG in grey or three colours."""
    header = _jpeg_header(encoded)
    return header is not None and header[2] not in ("CMYK", "YCCK")


def is_plain_png(encoded: bytes | memoryview) -> bool:
    """Whether the image is a PNG of 8 bits a channel, in grey or RGB, without palette or alpha."""
    # After the signature, the first chunk: 8 bytes of length and name, 8 of width and height, bit depth, colour type.
    head = bytes(encoded[:26])
    return head[:8] == _PNG_START and head[24:] in (b"\x08\x00", b"\x08\x02")


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to RGB; the image itself where it is RGB already."""
    if image.mode == "RGB":
        return image
    # Pillow would warn about each palette with alpha and then drop the alpha: the very thing that is wanted.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def decode_plain_jpeg(encoded: bytes | memoryview, reduction: int = 1) -> npt.NDArray[np.uint8] | None:
    """Decode by libjpeg-turbo to (H, W, 3).

    None for what Pillow must decide upon: other formats, four colours, damaged files. All else Pillow takes, too.
    """
    from simplejpeg import decode_jpeg

    header = _jpeg_header(encoded)
    if header is None or header[2] in ("CMYK", "YCCK"):
        return None
    height, width, _, _ = header
    try:
        pixels_HWC: npt.NDArray[np.uint8] = decode_jpeg(
            _unsigned(encoded),
            min_height=-(-height // reduction),
            min_width=-(-width // reduction),
            min_factor=reduction,
        )
    except ValueError:
        return None
    return pixels_HWC


def _jpeg_header(encoded: bytes | memoryview) -> tuple[int, int, str, str] | None:
    """Height, width, colour space and subsampling of a JPEG; None for other formats and damaged headers."""
    from simplejpeg import decode_jpeg_header

    if bytes(encoded[:3]) != _JPEG_START:
        return None
    try:
        header: tuple[int, int, str, str] = decode_jpeg_header(_unsigned(encoded))
    except ValueError:
        return None
    return header


def _unsigned(encoded: bytes | memoryview) -> memoryview:
    """A view of Arrow's memory has signed numbers, which the library refuses."""
    return memoryview(encoded).cast("B")
