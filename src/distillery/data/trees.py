"""Folders and tars seen alike: a tree of files, and where each file's bytes lie."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from distillery.errors import UserError

_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class RawFile:
    """A file of a tree: its path below the root (with slashes), its size in bytes, and where a tar has it."""

    path: str
    size: int
    offset: int | None = None


class Tree(Protocol):
    """What is read from raw data: `source` is the folder or tar that `read_raw` takes bytes from."""

    source: Path

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""


def open_tree(path: Path, scratch: Path) -> Tree:
    """See a folder or a tar as a tree; a compressed tar is first unpacked to one plain tar in ``scratch``.

    Raises:
        UserError: it cannot be read, is neither folder nor tar, is damaged, or holds members that no data set should.
    """
    if path.is_dir():
        return FolderTree(path)
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    for prefix, opener in _DECOMPRESSORS.items():
        if magic.startswith(prefix):
            return TarTree(_decompress(path, opener, scratch / "raw.tar"), shown=path)
    return TarTree(path, shown=path)


def read_raw(source: Path, file: RawFile, descriptor: int | None) -> bytes:
    """Read a file's bytes: from its own path, or by offset from a tar that is open as ``descriptor``.

    Raises:
        UserError: the file cannot be read. This is no damaged image, so no data set may skip it.
    """
    try:
        if file.offset is None:
            return (source / file.path).read_bytes()
        assert descriptor is not None
        content = _read_at(descriptor, file.size, file.offset)
    except OSError as error:
        raise UserError(f"{source}: {file.path} cannot be read: {error.strerror}") from None
    if len(content) != file.size:
        raise UserError(f"{source}: {file.path} cannot be read: the tar ended too early; was it changed meanwhile?")
    return content


def _read_at(descriptor: int, size: int, offset: int) -> bytes:
    """One pread returns at most 2 GiB, and less when a signal comes."""
    content = os.pread(descriptor, size, offset)
    while len(content) < size and (more := os.pread(descriptor, size - len(content), offset + len(content))):
        content += more
    return content


class FolderTree:
    """A folder on disk; symbolic links are followed."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""
        try:
            return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""
        try:
            yield from self._walk(folder, frozenset())
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    def _walk(self, folder: str, above: frozenset[tuple[int, int]]) -> Iterator[RawFile]:
        status = (self.source / folder).stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise UserError(f"{self.source}: {shown(folder)} is a link to a folder above it; remove it")
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            _check_text(path, self.source)
            if entry.is_dir():
                yield from self._walk(path, above | {here})
            elif entry.is_file():
                yield RawFile(path, entry.stat().st_size)
            else:
                kind = "a broken link" if entry.is_symlink() else "not a regular file"
                raise UserError(f"{self.source}: {shown(path)} is {kind}; remove it")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        with os.scandir(self.source / folder) as entries:
            return list(entries)


class TarTree:
    """A plain tar: every member's place is noted in one pass over the headers, the contents are read later."""

    def __init__(self, source: Path, shown: Path) -> None:
        self.source = source
        self._shown = shown
        self._files: dict[str, RawFile] = {}
        self._folders: dict[str, set[str]] = {"": set()}
        end = 0
        try:
            with tarfile.open(source, "r:") as tar:
                while (member := tar.next()) is not None:
                    # tarfile would keep every header; a million of them take more than a gigabyte.
                    tar.members = []  # type: ignore[attr-defined]
                    self._add(member)
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        except tarfile.TarError as error:
            kind = f"damaged tar: {error} after {end:,} bytes" if end else "neither a folder nor a tar"
            raise UserError(f"{shown}: {kind}; get it anew or unpack it") from None
        except OSError as error:
            raise UserError(f"{shown}: cannot be read: {error.strerror}") from None
        self._check_end(end)

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""
        return sorted(self._folders.get(folder, ()))

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""
        prefix = f"{folder}/" if folder else ""
        return (file for path, file in self._files.items() if path.startswith(prefix))

    def _add(self, member: tarfile.TarInfo) -> None:
        _check_text(member.name, self._shown)
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self._shown}: member {shown(member.name)} points outside the tar; refused")
        if member.issym() or member.islnk():
            raise UserError(
                f"{self._shown}: member {shown(member.name)} is a link to {shown(member.linkname)}; "
                "links in tars are refused, store the file itself"
            )
        if not (member.isdir() or member.isreg()) or member.issparse():
            raise UserError(f"{self._shown}: member {shown(member.name)} is no regular file or folder; refused")
        folders = path.parts if member.isdir() else path.parts[:-1]
        for depth, name in enumerate(folders):
            self._folders.setdefault("/".join(folders[:depth]), set()).add(name)
        if member.isreg():
            # A later member of the same name replaces the earlier one, as it does when unpacked.
            self._files[str(path)] = RawFile(str(path), member.size, member.offset_data)

    def _check_end(self, end: int) -> None:
        """A tar ends with a block of zeros; a download that broke off between two members lacks only that."""
        with self.source.open("rb") as file:
            file.seek(end)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise UserError(f"{self._shown}: damaged tar: it breaks off after {end:,} bytes; get it anew")


def _decompress(path: Path, opener: object, target: Path) -> Path:
    try:
        with opener(path, "rb") as packed, target.open("wb") as plain:  # type: ignore[operator]
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # Damage is an OSError without a number in gzip and bz2; one with a number is the disk's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: damaged archive: {str(error).splitlines()[0]}; get it anew") from None
    return target


def _check_text(path: str, source: Path) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source}: the name {path!a} is not UTF-8 text; rename it") from None


def shown(path: str) -> str:
    """A path as it may stand in a one-line message."""
    return path if path.isprintable() else ascii(path)
