"""The ledger: all that decides a result, as plain data, its digest, and what differs between two of them.

A run's digest holds its resolved spec with every default, a network's arguments, the bytes of imported weights, and an
integer for each thing whose mathematics may change. Code itself is in no digest: a comment, a refactoring or an update
makes nothing stale. Whoever changes what is computed raises the integer that stands beside it (``numerics`` of a term,
an augmentation or a network, or one of those below); ``tests/test_numerics.py`` fails when one moves alone.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from distillery.experiment.address import parse_address
from distillery.experiment.plugins import is_plugin, source_of
from distillery.experiment.schema.block import Block, Neutral
from distillery.experiment.schema.columns import COLUMNS, METRICS
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.labels import FewLabels, LabelList
from distillery.experiment.schema.objective import Objective
from distillery.paths import regular

# How networks are trained: the loop, optimizers, schedules, mixing, moving averages, the orders of images.
ENGINE = 1
# Which parameters a network exempts from weight decay by patterns of their names; no other known network has any.
DECAY_PATTERNS = 1
WITH_DECAY_PATTERNS = ("xcit_", "timm:xcit_")
# How raw images become prepared ones.
PREPARING = 1
# How weights of files and of libraries become those of a network.
IMPORTING = 1
# How a network is measured, and how it is counted and timed.
EVALUATION = 1
PROFILING = 2
# How its embedding is probed.
PROBING = 1
# What tables and figures show of the same measurements.
REPORTING = 5

# What columns take from metrics.json: with a new one, runs that were measured before are measured again.
METRIC_KEYS = sorted({column.key for column in COLUMNS.values() if column.file == METRICS})
MEASURED = f"{EVALUATION} of {', '.join(METRIC_KEYS)}"

# Which keys of a data set's line decide its images; the others say where they lie, or check them.
IMAGE_KEYS = (
    *("layout", "bundled", "generated", "val_folder", "part", "holdout", "label", "split", "orientation", "on_corrupt"),
)


def images_entry(dataset: Dataset) -> dict[str, Any]:
    """What decides the prepared images of a data set, besides the raw ones."""
    kept = [name for name in IMAGE_KEYS if not _is_neutral(Dataset.model_fields[name].metadata, dataset, name)]
    content = {name: entry(getattr(dataset, name)) for name in kept}
    # Where they lie decides nothing.
    content |= {"unlabelled": True} if dataset.unlabelled is not None else {}
    return content | {"numerics": PREPARING}


def entry(value: Any) -> Any:  # noqa: ANN401
    """A block of the configuration as the ledger holds it: every key with its value, and the block's ``numerics``.

    Left out are keys with their neutral value (see ``Neutral``), and the terms that an objective does not have.
    """
    if isinstance(value, Objective):
        return {name: entry(options) for name, options in value.terms().items()}
    if isinstance(value, Block):
        fields = type(value).model_fields.items()
        kept = {name: getattr(value, name) for name, field in fields if not _is_neutral(field.metadata, value, name)}
        content = {name: entry(part) for name, part in (kept | (value.model_extra or {})).items()}
        if is_plugin(type(value).__module__):
            parts = [f"{type(value).__module__}:{type(value).__name__}"]
            parts += [getattr(type(value), name, None) or "" for name in ("implementation", "head")]
            content["source"] = [source_of(part) for part in parts if is_plugin(part)]
        return content if type(value).numerics is None else content | {"numerics": type(value).numerics}
    if isinstance(value, Mapping):
        return {key: entry(part) for key, part in value.items()}
    return [entry(part) for part in value] if isinstance(value, (list, tuple)) else value


def labels_entry(labels: FewLabels | None) -> Any:  # noqa: ANN401
    """As ``entry``, with the bytes of a list and not its place.

    Raises:
        UserError: the list cannot be read.
    """
    content = entry(labels)
    if labels is not None and isinstance(labels.labels, LabelList):
        address = parse_address(labels.labels.list)
        path = Path(labels.labels.list).expanduser()
        content["labels"] = file_entry("labels", path) if address is None else {"sha256": address.sha256}
    return content


def file_entry(key: str, path: Path) -> dict[str, str]:
    """The bytes of a file that a key names.

    Raises:
        UserError: it cannot be read; the line begins with the key.
    """
    found = file_sha256(path)
    if found is None:
        raise UserError(
            f"{key}: {path} cannot be read, and its bytes decide the run and all that descends from it; put the file "
            "back, or name another"
        )
    return {"sha256": found}


def _is_neutral(metadata: list[Any], block: Block, name: str) -> bool:
    return any(isinstance(mark, Neutral) and mark.value == getattr(block, name) for mark in metadata)


def digest_of(content: Any) -> str:  # noqa: ANN401
    """16 hex digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str | None:
    """The SHA-256 of a file's bytes, 64 hex digits; None if it cannot be read. Hashed again when it has changed."""
    try:
        facts = regular(path).stat()
        return _sha256(path, facts.st_mtime_ns, facts.st_size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _sha256(path: Path, _date: int, _size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(before: Any, now: Any, key: str = "") -> list[str]:  # noqa: ANN401
    """What differs between two ledgers, a line a key: ``recipe.optimizer.lr: 0.1 -> 0.05``."""
    if before == now:
        return []
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = dict.fromkeys([*before, *now])
        parts = {name: (before.get(name, _ABSENT), now.get(name, _ABSENT)) for name in names}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = {str(place): pair for place, pair in enumerate(zip(before, now, strict=True))}
    else:
        return [f"{key}: {_shown(before)} -> {_shown(now)}"]
    return [line for name, pair in parts.items() for line in differences(*pair, f"{key}.{name}".lstrip("."))]


def with_names(lines: Iterable[str], before: str | None, now: str | None) -> list[str]:
    """Lines of ``differences`` with a teacher that only one of both has by its run's name, not by all of its spec."""
    named = f"teacher: {before or 'none'} -> {now or 'none'}"
    return [named if line.startswith("teacher: ") else line for line in lines]


class _Absent:
    """Stands for a key that one of two ledgers does not have."""


_ABSENT = _Absent()


def _shown(value: object) -> str:
    if isinstance(value, _Absent):
        return "absent"
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
