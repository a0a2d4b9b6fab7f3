"""Read what commands have written into the results folder, and name the command where that fails."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from distillery.paths import RESULTS


def command(verb: str, experiment: Path, run: str, seed: int | None, results: Path) -> str:
    """The command line that makes a file of a run: ``distillery train config/digits.yaml resnet8 --seed 0``."""
    words = ["distillery", verb, str(experiment), run]
    words += [] if seed is None else ["--seed", str(seed)]
    words += [] if results == RESULTS else ["--results", str(results)]
    return " ".join(words)


def unusable(path: Path, reason: str, made_by: str) -> UserError:
    """The error for a file that is there and of no use; ``made_by`` is the command that makes it."""
    return UserError(f"{path}: {reason}; make it again with: {made_by}")


def read_text(path: Path, made_by: str) -> str:
    """Read a text file.

    Raises:
        UserError: it is missing or cannot be read; the line says which command makes it.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: missing; first make it with: {made_by}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise unusable(path, f"cannot be read: {reason}", made_by) from None


def read_json(path: Path, made_by: str, needed: Iterable[str] = ()) -> dict[str, Any]:
    """Read a JSON file that holds a mapping with at least the ``needed`` keys.

    Raises:
        UserError: it is missing, damaged or incomplete; the line says which command makes it.
    """
    text = read_text(path, made_by)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise unusable(path, "cannot be read: not valid JSON", made_by) from None
    if not isinstance(content, dict):
        raise unusable(path, "not a mapping of names to values", made_by)
    for key in needed:
        if key not in content:
            raise unusable(path, f"lacks {key!r}", made_by)
    return content


def try_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is missing, damaged or no mapping."""
    try:
        return read_json(path, made_by="")
    except UserError:
        return None


def remove_others(folder: Path, suffixes: Iterable[str], keep: Iterable[Path]) -> None:
    """Remove files of these kinds that are made no more; they would pass for current ones."""
    kept, old = set(keep), tuple(suffixes)
    for path in folder.iterdir():
        if path.suffix in old and path not in kept:
            path.unlink()
