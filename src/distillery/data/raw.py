"""One raw image file: where its bytes lie, and how they are read."""

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from distillery.errors import UserError

# An image or a list of a data set has fewer bytes; what has more would only fill the memory.
LARGEST_FILE = 2**30


@dataclass(frozen=True, slots=True)
class Packed:
    """How a zip holds a file: its bytes there, the CRC-32 of the content, and whether it is deflated."""

    size: int
    crc: int
    deflated: bool


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a tree: its path below the root (with slashes), its size in bytes, and where it lies.

    ``source`` is the tree's folder, or, where there is an ``offset``, the archive that has the file at that byte.
    """

    path: str
    size: int
    source: Path
    offset: int | None = None
    packed: Packed | None = None

    def location(self) -> Path:
        """The file on the disk: itself, or the archive that it lies in."""
        return self.source / self.path if self.offset is None else self.source


@dataclass(frozen=True, slots=True)
class MadeFile:
    """A file that was made from other raw data, such as a table of pixels."""

    path: str
    content: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.content)


@dataclass(frozen=True, slots=True)
class ArrowFile:
    """A file in a row of an Arrow stream on the disk, in the field ``bytes`` of the column ``column``."""

    path: str
    size: int
    source: Path
    column: str
    row: int


AnyFile = RawFile | MadeFile | ArrowFile


class RawReader:
    """Read raw files; archives stay open from one file to the next, until the context ends."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}
        self._columns: dict[tuple[Path, str], pa.ChunkedArray] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()
        self._columns.clear()

    def read(self, file: AnyFile) -> bytes:
        """The content of a file.

        Raises:
            UserError: the file cannot be read. This is no damaged image, so no data set may skip it.
        """
        if isinstance(file, MadeFile):
            return file.content
        check_file_size(file.path, file.size, file.source)
        try:
            return self._read_row(file) if isinstance(file, ArrowFile) else self._read_stored(file)
        except OSError as error:
            raise UserError(f"{file.source}: {shown(file.path)} cannot be read: {error.strerror or error}") from None

    def _read_stored(self, file: RawFile) -> bytes:
        if file.offset is None:
            return file.location().read_bytes()
        if file.source not in self._descriptors:
            self._descriptors[file.source] = os.open(file.source, os.O_RDONLY)
        stored = file.packed.size if file.packed else file.size
        content = _read_at(self._descriptors[file.source], stored, file.offset)
        if len(content) != stored:
            raise UserError(
                f"{file.source}: {shown(file.path)} cannot be read: the archive ended too early; "
                "was it changed meanwhile?"
            )
        return _unpack(content, file, file.packed) if file.packed else content

    def _read_row(self, file: ArrowFile) -> bytes:
        key = (file.source, file.column)
        if key not in self._columns:
            table = pa.ipc.open_stream(pa.memory_map(str(file.source))).read_all()
            self._columns[key] = table.column(file.column)
        content: bytes = self._columns[key][file.row]["bytes"].as_py()
        return content


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    """One pread returns at most 2 GiB, and less when a signal comes."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content


def _unpack(content: bytes, file: RawFile, packed: Packed) -> bytes:
    try:
        # No more than the zip's directory says: a small member may unpack to any size.
        plain = zlib.decompressobj(wbits=-15).decompress(content, file.size + 1) if packed.deflated else content
    except zlib.error:
        plain = b""
    if len(plain) != file.size or zlib.crc32(plain) != packed.crc:
        raise UserError(f"{file.source}: damaged zip: {shown(file.path)} has another checksum; get it again")
    return plain


def check_file_size(path: str, size: int, source: Path) -> None:
    """Refuse what is too large for an image, before any of it is read.

    Raises:
        UserError: it has more than LARGEST_FILE bytes.
    """
    if size > LARGEST_FILE:
        raise UserError(f"{source}: {shown(path)} has {size:,} bytes; the limit for one file is {LARGEST_FILE:,}")


def counted(number: int, thing: str, things: str | None = None) -> str:
    """A number of things: ``1 image``, ``2,000 images``, ``2 classes``."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def shown(path: str) -> str:
    """A path as it may stand in a one-line message."""
    return path if path.isprintable() else ascii(path)
