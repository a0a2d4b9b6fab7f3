"""Build a folder beside its final place, so that it appears whole or not at all."""

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from distillery.atomic import flush_to_disk
from distillery.errors import UserError


@contextmanager
def staged_folder(output: Path) -> Iterator[Path]:
    """Give an empty sibling folder to fill, and put it in the place of ``output`` when the block ends well.

    An older ``output`` stays as it was until then. A block that ends by an error leaves nothing behind; what a
    killed process left is removed by the next call. Missing parent folders are made.

    Raises:
        UserError: the folder cannot be written (permissions, a full disk).
    """
    staging = output.with_name(f".{output.name}.{uuid4().hex[:12]}.partial")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        staging.mkdir()
        lock = _lock(staging)
        try:
            yield staging
            _flush_tree(staging)
            _put_in_place(staging, output)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            if lock is not None:
                os.close(lock)
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {error.strerror or error}") from error


def _put_in_place(staging: Path, output: Path) -> None:
    """Rename the finished folder; a folder with content cannot be renamed over, so an older one steps aside first."""
    aside = output.with_name(f".{output.name}.{uuid4().hex[:12]}.partial")
    if output.exists():
        output.rename(aside)
    staging.rename(output)
    flush_to_disk(output.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_abandoned(output: Path) -> None:
    """Remove staging folders whose process is gone: the kernel has given back their locks."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.*.partial"):
        lock = _lock(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None if another holds it or the file system has no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _flush_tree(folder: Path) -> None:
    """Force a folder's files and names to the disk; many at once, which the file system commits together."""
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(flush_to_disk, [*folder.rglob("*"), folder]))
