"""Decoded images on a local disk: each is decoded once a session, by whoever asks first, and read from there after.

H W pixels.
"""

import errno
import mmap
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.errors import UserError

# Of what a disk has free, so much may be taken.
MOST_OF_DISK = 0.8
# An image's row: where its pixels begin, plus one (0: nowhere yet), its height and its width.
_ROW = 3


class DecodedImages:
    """The decoded images of a split, for this process and the workers that it forks.

    The file has no name: nothing of it stays behind however the processes end, and no other session can meet it. Where
    the disk is full, the images that have no place are decoded as ever.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, images: ArrowImages, folder: Path) -> None:
        self._images = images
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # open as long as this lives
            self._room = int(MOST_OF_DISK * shutil.disk_usage(folder).free)
            # Sparse: it takes what is written.
            os.ftruncate(self._file.fileno(), max(self._room, 1))
        except OSError as error:
            raise UserError(f"--cache: {folder}: cannot be written: {error.strerror or error}") from None
        self._pixels = torch.frombuffer(mmap.mmap(self._file.fileno(), max(self._room, 1)), dtype=torch.uint8)
        # Shared with the workers, which are forked later.
        self._rows_N3: npt.NDArray[np.int64] = np.frombuffer(
            mmap.mmap(-1, 8 * _ROW * len(images)), dtype=np.int64
        ).reshape(-1, _ROW)
        self._taken = multiprocessing.get_context("fork").Value("q", 0)

    def take(self, index: int) -> Tensor:
        """An image as ``decode_rgb`` gives it, uint8 (3, H, W); not to be written to."""
        begin, height, width = self._rows_N3[index].tolist()
        if begin:
            pixels = self._pixels[begin - 1 : begin - 1 + height * width * 3]
            return pixels.view(height, width, 3).permute(2, 0, 1)
        image_CHW = decode_rgb(self._images.encoded(index))
        self._keep(index, image_CHW.permute(1, 2, 0).numpy())
        return image_CHW

    def _keep(self, index: int, pixels_HW3: npt.NDArray[np.uint8]) -> None:
        pixels_HW3 = np.ascontiguousarray(pixels_HW3)
        with self._taken.get_lock():
            begin = self._taken.value
            if begin + pixels_HW3.nbytes > self._room:
                return
            self._taken.value += pixels_HW3.nbytes
        try:
            written = os.pwrite(self._file.fileno(), pixels_HW3.tobytes(), begin)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            written = 0
        if written == pixels_HW3.nbytes:
            # Where it begins comes last: whoever sees that sees the rest.
            self._rows_N3[index, 1:] = pixels_HW3.shape[:2]
            self._rows_N3[index, 0] = begin + 1
