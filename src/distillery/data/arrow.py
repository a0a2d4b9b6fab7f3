"""Read prepared images from memory-mapped Arrow shards, by sample id."""

from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distillery.data.manifest import Manifest, SplitName
from distillery.errors import UserError


class ArrowImages:
    """The encoded images and labels of one split.

    Shards are mapped into memory when first touched, in each process by itself: the object is small to pickle and safe
    to fork, and all processes of a machine share one copy of the data in the page cache.

    Raises:
        UserError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: SplitName) -> None:
        part = manifest.splits[split]
        self._paths = [folder / shard.file for shard in part.shards]
        self._starts = np.cumsum([0, *(shard.images for shard in part.shards)]).tolist()
        self._shards: dict[int, tuple[npt.NDArray[np.int32], memoryview]] = {}
        self.labels: npt.NDArray[np.int64] = np.repeat(
            np.arange(len(manifest.classes), dtype=np.int64), part.images_per_class
        )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}}

    def encoded(self, index: int) -> memoryview:
        """The bytes of an image file, not copied; ``index`` is its sample id in [0, len)."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample id {index} is not in [0, {len(self)})")
        shard = bisect_right(self._starts, index) - 1
        if shard not in self._shards:
            self._shards[shard] = _map_images(self._paths[shard])
        offsets, data = self._shards[shard]
        row = index - self._starts[shard]
        return data[offsets[row] : offsets[row + 1]]


def _map_images(path: Path) -> tuple[npt.NDArray[np.int32], memoryview]:
    """Map a shard: where each image's bytes begin and end, and the bytes of all images."""
    try:
        batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
        _, offsets, data = batch.column("image").field("bytes").buffers()
    except (OSError, pa.ArrowInvalid, KeyError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        name = path.parent.name
        raise UserError(f"{path}: cannot be read: {reason}; make it anew with: distillery prepare {name}") from None
    return np.frombuffer(offsets, dtype=np.int32), memoryview(data)
