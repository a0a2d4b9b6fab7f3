"""Download a file so that it appears whole and checked, and continue where a download broke off."""

import fcntl
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distillery.atomic import flush_to_disk
from distillery.data.parallel import Progress
from distillery.errors import UserError

# Seconds without a byte after which a server counts as silent, and between two attempts.
_PATIENCE = 30.0
_PAUSE = 2.0
_ATTEMPTS = 5
_CHUNK = 1 << 20


class _Unfinished(Exception):
    """The connection ended before the file did; the text says why."""


@dataclass(frozen=True)
class Remote:
    """A file to be fetched.

    Attributes:
        name: how it is called while it comes.
        checksum: ``md5:<hex>``, or another algorithm's.
        size: its bytes, where they are known.
        largest: a file of more bytes is refused.
        cures: what to do, as the end of a line, where it cannot be fetched, is another file, or has an unknown size.
    """

    name: str
    url: str
    checksum: str
    size: int | None
    largest: int | None
    cures: tuple[str, str, str]


def download(name: str, url: str, target: Path, checksum: str, size: int | None = None) -> None:
    """Fetch a data set's archive, as datasets.yaml names it, to ``target``; see ``fetch_file``."""
    cures = (
        f"run `distillery download {name}` where there is a network",
        f"look at the address and `checksum` of {name!r} in datasets.yaml",
        f"write `size:` of {name!r} in datasets.yaml",
    )
    fetch_file(Remote(name, url, checksum, size, None, cures), target)


def fetch_file(remote: Remote, target: Path) -> None:
    """Fetch a file to ``target``, which appears when all of it is there and has the checksum.

    No more than ``size`` bytes are taken, or than the server says before it sends them, or than the disk has room for.

    What has come stays in ``.<target>.partial`` beside it after any failure, and the next call asks the server for the
    rest only. A second process that wants the same file waits for the first.

    Raises:
        UserError: it cannot be fetched (the line says what to do by hand), is not what the checksum says, or cannot be
            written.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial):
            if target.exists():
                return check_checksum(target, remote.checksum)
            resumed = _size(partial) > 0
            _fetch(remote, target, partial)
            if resumed and not _has_checksum(partial, remote.checksum):
                # The beginning may be another version's; all of it again, once.
                partial.write_bytes(b"")
                _fetch(remote, target, partial)
            if not _has_checksum(partial, remote.checksum):
                partial.write_bytes(b"")
                raise UserError(
                    f"{remote.url}: what came does not have the checksum {remote.checksum}; {remote.cures[1]}"
                )
            flush_to_disk(partial)
            partial.rename(target)
            flush_to_disk(target.parent)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error


def check_checksum(path: Path, checksum: str) -> None:
    """Refuse a file that is not what its checksum says.

    Raises:
        UserError: it is another file, or cannot be read.
    """
    try:
        right = _has_checksum(path, checksum)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not right:
        raise UserError(
            f"{path}: is not the official file, whose checksum is {checksum}; remove it and it is downloaded again, or "
            "give your own file another name and remove `download` from datasets.yaml"
        )


def _fetch(remote: Remote, target: Path, partial: Path) -> None:
    """Append to ``partial`` until all is there; as long as something comes, broken connections are taken up again."""
    failures = 0
    while True:
        before = _size(partial)
        try:
            return _request(remote, partial)
        except _Unfinished as reason:
            failures = 1 if _size(partial) > before else failures + 1
            if failures == _ATTEMPTS or before == _size(partial) == 0:
                raise UserError(
                    f"{remote.url}: cannot be downloaded: {reason}; {remote.cures[0]}, or put the file at {target} by "
                    "hand"
                ) from None
        time.sleep(_PAUSE)


def _request(remote: Remote, partial: Path) -> None:
    begin = _size(partial)
    headers = {"User-Agent": "distillery", "Accept-Encoding": "identity"}
    request = urllib.request.Request(remote.url, headers=headers | ({"Range": f"bytes={begin}-"} if begin else {}))
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and begin:
            return  # there is no more; the checksum shows whether that is all of it
        raise _Unfinished(f"the server says {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _Unfinished(getattr(reason, "strerror", None) or str(reason) or type(error).__name__) from None
    with response, partial.open("r+b") as file:
        # A server that does not know ranges sends all of it again.
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if continued and _range_begin(response) != begin:
            file.truncate(0)
            raise _Unfinished("the server sent another part than was asked for")
        done = begin if continued else 0
        file.seek(done)
        file.truncate()
        _copy(remote.name, response, file, done, _total(remote, response, partial, done))


def _range_begin(response: Any) -> int | None:  # noqa: ANN401
    """Where the part begins that a server sends: ``Content-Range: bytes 100-199/200``."""
    begin = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(begin) if begin.isdigit() else None


def _total(remote: Remote, response: Any, partial: Path, done: int) -> int:  # noqa: ANN401
    """How many bytes the whole file has, ``done`` of which are there: an endless answer must not fill the disk."""
    length = response.headers.get("Content-Length", "")
    said, size, url = done + int(length) if length.isdigit() else None, remote.size, remote.url
    if said is None and size is None:
        raise UserError(f"{url}: the server does not say how large the file is; {remote.cures[2]}")
    if said is not None and size is not None and said != size:
        raise UserError(f"{url}: has {said:,} bytes, but {remote.name}.download.size in datasets.yaml expects {size:,}")
    total = size if said is None else said
    assert total is not None
    if remote.largest is not None and total > remote.largest:
        raise UserError(f"{url}: has {total:,} bytes; the limit is {remote.largest:,}")
    free = shutil.disk_usage(partial.parent).free
    if total - done > free:
        raise UserError(f"{url}: has {total:,} bytes, but {partial.parent} has room for {free:,} only")
    return total


def _copy(name: str, response: Any, file: Any, done: int, total: int) -> None:  # noqa: ANN401
    progress = Progress(f"download {name}", total, "B", done)
    try:
        while chunk := _read(response):
            if done + len(chunk) > total:
                file.truncate(0)
                raise UserError(f"{name}: the server sends more than the {total:,} bytes that the file has")
            file.write(chunk)
            progress.add(len(chunk))
            done += len(chunk)
    finally:
        file.flush()
        progress.close()
    if done < total:
        raise _Unfinished(f"the connection ended after {done:,} of {total:,} bytes")


def _read(response: Any) -> bytes:  # noqa: ANN401
    try:
        chunk: bytes = response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Unfinished(f"the connection broke: {error}") from None
    return chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _has_checksum(path: Path, checksum: str) -> bool:
    algorithm, _, expected = checksum.partition(":")
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Hold the unfinished file for as long as the block takes; a file system without locks is used without."""
    while True:
        with partial.open("ab") as file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(partial, os.fstat(file.fileno())):
                continue  # another process held it, and has put it in its place or removed it
            try:
                yield
            finally:
                if _size(partial) == 0:
                    partial.unlink(missing_ok=True)
            return


def _is_at(path: Path, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), status)
    except FileNotFoundError:
        return False
