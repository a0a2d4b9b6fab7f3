"""Write pixels as PNG, the same bytes on every machine."""

import struct
import zlib

import numpy as np
import numpy.typing as npt

# A stored block of deflate holds at most so many bytes.
_BLOCK = 2**16 - 1
_COLOUR_TYPES = {1: 0, 3: 2}


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image, greyscale of shape (H, W) or RGB of shape (H, W, 3), as PNG.

    zlib's output differs between its versions and substitutes, and with it every checksum over the image, so the pixels
    are stored uncompressed: deflate's stored block is the only one whose bytes the standard fixes.
    """
    height, width, *channels = pixels.shape
    colour = _COLOUR_TYPES[channels[0] if channels else 1]
    # Each row of a PNG begins with the number of its filter; 0 is none.
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", _store(rows.tobytes())), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _store(data: bytes) -> bytes:
    """A zlib stream that holds data as it is."""
    blocks = [data[begin : begin + _BLOCK] for begin in range(0, len(data), _BLOCK)]
    stored = b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )
    return b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
