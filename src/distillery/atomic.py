"""Write files so that they appear whole or not at all, even if the process is killed or the machine fails."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from distillery.errors import UserError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write to, and put it in the place of ``path`` when the block ends well.

    Until then ``path`` stays as it was; when the block raises, the sibling is removed. Contents reach the disk before
    the new name does. Missing folders are made. Each call has a sibling of its own, so that two writers cannot mix.

    Raises:
        UserError: the folder or file cannot be written (permissions, a full disk).
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush_to_disk(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill, and put it at ``path`` when the block ends well.

    Raises:
        UserError: something is there already, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: is there already; remove it, or name a new folder")
    try:
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                flush_to_disk(file)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        flush_to_disk(path.parent)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:  # noqa: ANN401
    """Write readable JSON, keys in the order given, whole or not at all.

    Raises:
        ValueError: the data holds NaN or an infinity, which JSON has no word for.
        UserError: the file cannot be written.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def flush_to_disk(path: Path) -> None:
    """Force a file's contents, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
