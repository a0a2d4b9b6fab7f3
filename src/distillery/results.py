"""Read what commands have written into the results folder, and name the command where that fails."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distillery.atomic import write_text
from distillery.errors import UserError
from distillery.paths import REHEARSAL, RESULTS, regular

# The last key of a sealed file: the SHA-256 of what stands before it. It finds what was edited or has decayed; whoever
# wants to deceive can compute it anew.
SEAL = "seal"
# What says when and on what a run was made, and not what it is.
CIRCUMSTANCES = ("sessions", "alarms", "provenance", SEAL)


def command(verb: str, experiment: Path, run: str, seed: int | None, results: Path) -> str:
    """The command line that makes a file of a run: ``distillery train config/digits.yaml resnet8 --seed 0``."""
    words = ["distillery", verb, str(experiment), *([run] if run else [])]
    words += [] if seed is None else ["--seed", str(seed)]
    elsewhere = ["--rehearsal"] if results == REHEARSAL / RESULTS else ["--results", str(results)]
    words += [] if results == RESULTS else elsewhere
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
        return regular(path).read_text(encoding="utf-8")
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
    try:
        damaged = _is_sealed(content) and text != _sealed_text(content)
    except ValueError:  # a number that nothing here writes, as NaN
        damaged = True
    if damaged:
        raise unusable(path, "was edited or damaged since it was written: its seal does not fit", made_by)
    for key in needed:
        if key not in content:
            raise unusable(path, f"lacks {key!r}", made_by)
    return content


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file whose last key, ``seal``, tells whether it is still what was written.

    Raises:
        ValueError: the content holds NaN or an infinity.
        UserError: the file cannot be written.
    """
    write_text(path, _sealed_text(content))


def _is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether a file ends with a seal; one whose name was damaged is one, too."""
    *kept, last = content.items() if content else [("", None)]
    return SEAL in content or last[1] == hashlib.sha256(_as_text(dict(kept)).encode()).hexdigest()


def write_seals(path: Path, files: Iterable[Path], sources: Mapping[Path, str], results: Path) -> None:
    """Write beside files that hold no seal of their own what their bytes are, and those that they were made from.

    ``sources`` are hashes by path.
    """
    parts = {"files": {each: file_hash(each) for each in files}, "made_from": sources}
    write_sealed(
        path, {key: {each.relative_to(results).as_posix(): of[each] for each in of} for key, of in parts.items()}
    )


def _sealed_text(content: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in content.items() if key != SEAL}
    return _as_text(kept | {SEAL: hashlib.sha256(_as_text(kept).encode()).hexdigest()})


def _as_text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def record_sha256(record: Mapping[str, Any]) -> str:
    """The hash of what a run.json says of the run itself, the same whenever and wherever it is made again."""
    return hashlib.sha256(_as_text({k: v for k, v in record.items() if k not in CIRCUMSTANCES}).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits.

    Raises:
        OSError: it cannot be read.
    """
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(weights: Path, record: Mapping[str, Any], made_by: str) -> None:
    """See that weights are those that their run.json is about; records of the first releases do not say.

    Raises:
        UserError: they are others, or were damaged.
    """
    try:
        found = file_hash(weights)
    except OSError:
        return  # who loads them says it
    if record.get("weights_sha256", found) != found:
        raise unusable(
            weights,
            f"not the weights that its run.json is about (SHA-256 {found[:16]}..., it says "
            f"{record['weights_sha256'][:16]}...)",
            made_by,
        )


def try_json(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds; None if it is missing, damaged or no mapping."""
    try:
        return read_json(path, made_by="")
    except UserError:
        return None


def dead_terms(results: Path) -> list[str]:
    """What rehearsals found of terms that are 0 for all images: a line each, of all runs in a folder of results."""
    records = (try_json(path) for path in sorted(results.glob("*/*/seed*/run.json")))
    alarms = [alarm for record in records if record is not None for alarm in record.get("alarms", [])]
    return [alarm["line"] for alarm in alarms if alarm["alarm"] == "dead_term"]


def remove_others(folder: Path, suffixes: Iterable[str], keep: Iterable[Path]) -> None:
    """Remove files of these kinds that are made no more; they would pass for current ones."""
    kept, old = set(keep), tuple(suffixes)
    for path in folder.iterdir():
        if path.suffix in old and path not in kept:
            path.unlink()
