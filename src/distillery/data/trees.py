"""Folders, tars and zips seen alike: a tree of files, and where each file's bytes lie."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

from distillery.data.raw import Packed, RawFile, check_file_size, shown
from distillery.data.sources import IMAGE_EXTENSIONS
from distillery.errors import UserError

_DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
# Chunks after the end of a compressed tar.
_MOST_PADDING = 64


class Tree(Protocol):
    """Raw data as files below a root; ``source`` is the folder or archive as the user knows it."""

    source: Path

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""

    def find(self, path: str) -> RawFile | None:
        """The file of this path, if there is one."""


def open_tree(path: Path, scratch: Path) -> Tree:
    """See a folder, tar or zip as a tree; a compressed tar is first unpacked to one plain tar in ``scratch``.

    Raises:
        UserError: it cannot be read, is none of these, is damaged, or holds members that no data set should.
    """
    if path.is_dir():
        return FolderTree(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UserError(f"{path}: cannot be read: it is neither a folder nor a regular file")
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if magic.startswith(_ZIP_MAGIC):
        return ZipTree(path)
    for prefix, opener in _DECOMPRESSORS.items():
        if magic.startswith(prefix):
            plain = scratch / f"{sum(1 for _ in scratch.iterdir())}.tar"
            return TarTree(_unpack(path, opener, plain), path)
    return TarTree(path, path)


def open_nested_tar(file: RawFile, tree: Tree) -> "TarTree":
    """See a tar that lies in a tree, itself perhaps a tar, as a tree; nothing is unpacked.

    Raises:
        UserError: it is compressed, damaged, or holds members that no data set should.
    """
    if file.packed is not None:
        raise UserError(f"{tree.source}: {shown(file.path)} is compressed there; unpack the zip")
    return TarTree(file.location(), tree.source / file.path, file.offset or 0, file.size)


class FolderTree:
    """A folder on disk; symbolic links are followed."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""
        try:
            return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""
        try:
            yield from self._walk(folder, frozenset())
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders directly in ``folder`` ("" is the root), sorted."""
        try:
            return sorted(entry.name for entry in self._entries(folder))
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None

    def find(self, path: str) -> RawFile | None:
        """The file of this path, if there is one."""
        try:
            status = (self.source / path).stat()
        except OSError:
            return None
        return RawFile(path, status.st_size, self.source) if stat.S_ISREG(status.st_mode) else None

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
                yield RawFile(path, entry.stat().st_size, self.source)
            else:
                kind = "a broken link" if entry.is_symlink() else "not a regular file"
                raise UserError(f"{self.source}: {shown(path)} is {kind}; remove it")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        with os.scandir(self.source / folder) as entries:
            return list(entries)


class _ArchiveTree:
    """What tars and zips share: their members by path, and the folders that these imply."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self._files: dict[str, RawFile] = {}
        self._folders: dict[str, set[str]] = {"": set()}

    def subfolders(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` ("" is the root), sorted."""
        return sorted(self._folders.get(folder, ()))

    def files(self, folder: str) -> Iterator[RawFile]:
        """All files below ``folder``, in no particular order."""
        prefix = f"{folder}/" if folder else ""
        return (file for path, file in self._files.items() if path.startswith(prefix))

    def find(self, path: str) -> RawFile | None:
        """The file of this path, if there is one."""
        return self._files.get(path)

    def _note_folders(self, name: str, is_folder: bool) -> str:
        """Check a member's name, note the folders on its path, and return the path."""
        path = _checked_path(name, self.source)
        folders = path.parts if is_folder else path.parts[:-1]
        for depth, folder in enumerate(folders):
            self._folders.setdefault("/".join(folders[:depth]), set()).add(folder)
        return str(path)


class TarTree(_ArchiveTree):
    """A plain tar: every member's place is noted in one pass over the headers, the contents are read later.

    ``file`` holds the tar from the byte ``begin`` on, ``size`` bytes of it (to the end by default); ``source`` is what
    the user calls it.
    """

    def __init__(self, file: Path, source: Path, begin: int = 0, size: int | None = None) -> None:
        super().__init__(source)
        self._file = file
        end = begin
        try:
            limit = file.stat().st_size if size is None else begin + size
            # A buffer of one block: the contents between two headers are passed over, not read.
            with file.open("rb", buffering=_BLOCK) as opened:
                opened.seek(begin)
                with tarfile.open(fileobj=opened, mode="r:") as tar:
                    while (member := tar.next()) is not None:
                        # tarfile would keep every header; a million of them take more than a gigabyte.
                        tar.members = []  # type: ignore[attr-defined]
                        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                        if end > limit:
                            raise tarfile.ReadError("unexpected end of data")
                        self._add(member)
                self._check_end(opened, begin, end, limit)
        except tarfile.TarError as error:
            kind = f"damaged tar: {error} after {end - begin:,} bytes" if end > begin else "neither folder, tar nor zip"
            raise UserError(f"{source}: {kind}; get it again or unpack it") from None
        except OSError as error:
            raise UserError(f"{source}: cannot be read: {error.strerror}") from None

    def _add(self, member: tarfile.TarInfo) -> None:
        _check_member(member, self.source)
        path = self._note_folders(member.name, member.isdir())
        if member.isreg():
            # A later member of the same name replaces the earlier one, as it does when unpacked.
            self._files[path] = RawFile(path, member.size, self._file, member.offset_data)

    def _check_end(self, opened: BinaryIO, begin: int, end: int, limit: int) -> None:
        """A tar ends with a block of zeros; a download that broke off between two members lacks only that."""
        opened.seek(end)
        if end + _BLOCK > limit or opened.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(f"{self.source}: damaged tar: it breaks off after {end - begin:,} bytes; get it again")


class ZipTree(_ArchiveTree):
    """A zip, read in place; its members may be stored or deflated."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        try:
            with source.open("rb") as opened, zipfile.ZipFile(opened) as archive:
                for member in archive.infolist():
                    self._add(member, opened)
        except zipfile.BadZipFile as error:
            raise UserError(f"{source}: damaged zip: {error}; get it again or unpack it") from None
        except OSError as error:
            raise UserError(f"{source}: cannot be read: {error.strerror}") from None

    def _add(self, member: zipfile.ZipInfo, opened: BinaryIO) -> None:
        path = self._note_folders(member.filename, member.is_dir())
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserError(
                f"{self.source}: member {shown(member.filename)} is a link; links in archives are refused, "
                "store the file itself"
            )
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(
                f"{self.source}: member {shown(member.filename)} is encrypted or packed by another method than "
                "deflate; unpack the zip"
            )
        if not member.is_dir():
            packed = Packed(member.compress_size, member.CRC, member.compress_type == zipfile.ZIP_DEFLATED)
            self._files[path] = RawFile(path, member.file_size, self.source, _content_begin(member, opened), packed)


def _content_begin(member: zipfile.ZipInfo, opened: BinaryIO) -> int:
    """Where a member's bytes begin: behind its own header, whose length the zip's directory does not give."""
    opened.seek(member.header_offset)
    header = opened.read(30)
    if len(header) < 30 or not header.startswith(_ZIP_MAGIC[0]):
        raise zipfile.BadZipFile(f"no header of {shown(member.filename)} at byte {member.header_offset:,}")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return member.header_offset + 30 + int(name_length) + int(extra_length)


class _Copied:
    """Reads a stream, and writes all that is read to a file."""

    def __init__(self, stream: BinaryIO, copy: BinaryIO) -> None:
        self._stream, self._copy = stream, copy

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size`` of them."""
        content = self._stream.read(size)
        self._copy.write(content)
        return content


def _unpack(path: Path, opener: Any, target: Path) -> Path:  # noqa: ANN401
    """Unpack a compressed tar to a plain one, member by member: what no data set should hold ends it at its header."""
    try:
        with opener(path, "rb") as packed, target.open("wb") as plain:
            copied = _Copied(packed, plain)
            with tarfile.open(fileobj=copied, mode="r|", bufsize=_CHUNK) as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members = []
                    _check_member(member, path)
                    free = shutil.disk_usage(target.parent).free
                    if member.size > free:
                        raise UserError(
                            f"{path}: member {shown(member.name)} has {member.size:,} bytes, more than the {free:,} "
                            f"that are free in {target.parent}"
                        )
            # To the end, where the checksum stands; tars are padded, but not without end.
            padding = sum(1 for _ in range(_MOST_PADDING) if copied.read(_CHUNK))
            if padding == _MOST_PADDING:
                raise UserError(f"{path}: damaged archive: it goes on after the end of its tar; get it again")
    except tarfile.TarError:
        raise UserError(f"{path}: damaged archive, or one with no tar in it; get it again or unpack it") from None
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        # Damage is an OSError without a number in gzip and bz2; one with a number is the disk's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: damaged archive: {str(error).splitlines()[0]}; get it again") from None
    return target


def _check_member(member: tarfile.TarInfo, source: Path) -> None:
    path = _checked_path(member.name, source)
    if member.issym() or member.islnk():
        raise UserError(
            f"{source}: member {shown(member.name)} is a link to {shown(member.linkname)}; "
            "links in archives are refused, store the file itself"
        )
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise UserError(f"{source}: member {shown(member.name)} is no regular file or folder; refused")
    if path.suffix.lower() in IMAGE_EXTENSIONS:
        check_file_size(member.name, member.size, source)


def _checked_path(name: str, source: Path) -> PurePosixPath:
    _check_text(name, source)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{source}: member {shown(name)} points outside the archive; refused")
    return path


def _check_text(path: str, source: Path) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{source}: the name {path!a} is not UTF-8 text; rename it") from None
