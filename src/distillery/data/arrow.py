"""Read prepared images from memory-mapped Arrow shards, by sample id."""

import copy
import hashlib
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distillery.data.manifest import Manifest, SplitName
from distillery.errors import UserError
from distillery.paths import regular
from distillery.results import unusable

# In place of a label that a run may not use. No class, and not the index that torch's losses pass over in silence.
HIDDEN = -1


class ArrowImages:
    """The encoded images and labels of one split, or of several, one after the other.

    Shards are mapped into memory when first touched, in each process by itself: the object is small to pickle and safe
    to fork, and all processes of a machine share one copy of the data in the page cache. Images that are not embedded
    are read from where they lie, and compared with their checksums.

    Raises:
        UserError: the split or a shard is missing or damaged, or an image that is not embedded was changed.
    """

    def __init__(self, folder: Path, manifest: Manifest, *splits: SplitName) -> None:
        for split in splits:
            if split not in manifest.splits:
                raise UserError(f"{folder}: holds no images of the split {split}; it is for evaluation only")
        parts = {split: manifest.splits[split] for split in splits}
        shards = [shard for part in parts.values() for shard in part.shards]
        self._paths = [folder / shard.file for shard in shards]
        self._starts = np.cumsum([0, *(shard.images for shard in shards)]).tolist()
        self._shards: dict[int, _Embedded | _Placed] = {}
        self.squares: dict[Any, Any] = {}  # what memory.squares_of keeps
        classes = np.arange(len(manifest.classes), dtype=np.int64)
        labels = [
            np.full(part.images, HIDDEN, dtype=np.int64)
            if split == "unlabelled"
            else np.repeat(classes, part.images_per_class)
            for split, part in parts.items()
        ]
        self.labels: npt.NDArray[np.int64] = np.concatenate(labels)

    def with_labels_of(self, ids: npt.NDArray[np.int64]) -> "ArrowImages":
        """The same images, of which only these have labels; the others' are ``HIDDEN``."""
        known = copy.copy(self)
        known.labels = np.full_like(self.labels, HIDDEN)
        known.labels[ids] = self.labels[ids]
        return known

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_shards": {}, "squares": {}}

    def encoded(self, index: int) -> memoryview:
        """The bytes of an image file, not copied where they are embedded; ``index`` is its sample id in [0, len)."""
        shard, row = self._find(index)
        return shard.encoded(row)

    def path(self, index: int) -> str:
        """What the data set calls an image: its path below the raw images' root."""
        shard, row = self._find(index)
        return str(shard.paths[row].as_py())

    def _find(self, index: int) -> "tuple[_Embedded | _Placed, int]":
        if not 0 <= index < len(self):
            raise IndexError(f"sample id {index} is not in [0, {len(self)})")
        number = bisect_right(self._starts, index) - 1
        if number not in self._shards:
            self._shards[number] = _map_shard(self._paths[number])
        return self._shards[number], index - self._starts[number]


class _Embedded:
    """A mapped shard: where each image's bytes begin and end, and the bytes of all images."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.paths = batch.column("image").field("path")
        _, offsets, data = batch.column("image").field("bytes").buffers()
        self._offsets, self._data = np.frombuffer(offsets, dtype=np.int32), memoryview(data)

    def encoded(self, row: int) -> memoryview:
        return self._data[self._offsets[row] : self._offsets[row + 1]]


class _Placed:
    """A mapped shard whose images lie elsewhere."""

    def __init__(self, batch: pa.RecordBatch, made_by: str) -> None:
        self.paths, self._made_by = batch.column("image").field("path"), made_by
        self._places = [batch.column(name) for name in ("file", "offset", "size", "sha256")]

    def encoded(self, row: int) -> memoryview:
        file, offset, size, sha256 = (column[row].as_py() for column in self._places)
        try:
            with regular(Path(file)).open("rb") as opened:
                opened.seek(offset or 0)
                # One byte more shows whether the file has grown.
                content = opened.read(size + (offset is None))
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read: {error.strerror}; bring it back, or run: {self._made_by}"
            ) from None
        if len(content) != size or hashlib.sha256(content).digest() != sha256:
            name = file if offset is None else f"{file}: {self.paths[row].as_py()}"
            raise UserError(f"{name}: was changed since it was prepared; bring it back, or run: {self._made_by}")
        return memoryview(content)


def _map_shard(path: Path) -> _Embedded | _Placed:
    made_by = f"distillery prepare {path.parent.name}"
    try:
        batch = pa.ipc.open_stream(pa.memory_map(str(path))).read_next_batch()
        return _Placed(batch, made_by) if "sha256" in batch.schema.names else _Embedded(batch)
    except (OSError, pa.ArrowInvalid, KeyError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise unusable(path, f"cannot be read: {reason}", made_by) from None
