"""Weights that know other classes than a data set has: which of them are its classes, and a last layer of these alone.

Softmax over the rows that are kept is softmax over all, renormalised: nothing else has to know of the others.

C classes of the data set, N classes of the weights.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillery.errors import UserError
from distillery.experiment.schema.experiment import NO_CLASSES, OWN_CLASSES, WORDNET_LISTS
from distillery.models.pretrained.load import classifier_modules
from distillery.paths import regular

# In place of the logit of a class that the weights do not know: below all others, and finite in half precision.
UNKNOWN = -1000.0

WNID = re.compile(r"n\d{8}(?!\d)")


@dataclass(frozen=True)
class ClassMap:
    """Which class of the weights is each class of a data set.

    Attributes:
        ours: the data set's classes, C.
        rows: of each its number among the weights' N classes; None where they do not know it.
        total: N.
    """

    ours: tuple[str, ...]
    rows: tuple[int | None, ...]
    total: int

    @property
    def unknown(self) -> list[str]:
        """The data set's classes that the weights do not know."""
        return [name for name, row in zip(self.ours, self.rows, strict=True) if row is None]

    def line(self) -> str:
        """In words, with what is left out."""
        kept, unknown = len(self.ours) - len(self.unknown), self.unknown
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        left = f"; they do not know {len(unknown)}: {shown}" if unknown else ""
        return f"of {self.total:,} classes of the weights, {kept} are those of the data set's {len(self.ours)}{left}"


def weights_classes(classes: str, record: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that weights know, in the order of their last layer; None where they have no classifier.

    Args:
        classes: a list of timm's, a file with a class a line, ``names`` (as the run that made the weights has them), or
            ``none``.
        record: run.json of the run that made the weights; empty where none did.

    Raises:
        UserError: the file cannot be read or has gaps, the list has the run's own names in another order, or no run
            made the weights; the line begins with ``classes``.
    """
    known = tuple(record.get("class_names") or ())
    if classes == NO_CLASSES:
        return None
    if classes in WORDNET_LISTS:
        from timm.data.imagenet_info import ImageNetInfo

        info = ImageNetInfo(classes)
        names = tuple(f"{wnid} {info.label_name_to_description(wnid)}" for wnid in info.label_names())  # type: ignore[no-untyped-call]
        return _not_contradicted(names, known)
    if classes == OWN_CLASSES:
        if not known:
            raise UserError("classes: names are known of a run's weights only; write a file with a class a line")
        return known
    path = Path(classes).expanduser()
    try:
        names = tuple(regular(path).read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"classes: {path} cannot be read: {reason}") from None
    for number, name in enumerate(names, 1):
        if not name.strip():
            raise UserError(f"classes: {path}:{number}: is empty; write a class a line, in the order of the weights")
    if not names:
        raise UserError(f"classes: {path} is empty; write a class a line, in the order of the weights")
    return _not_contradicted(tuple(name.strip() for name in names), known)


def _not_contradicted(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """A list of classes, of which none may be what the run that made the weights calls another number."""
    for number, row in enumerate(_find(known, names) if len(known) == len(names) else ()):
        if row not in (None, number):
            raise UserError(
                f"classes: number {number} is {names[number]!r}, but {known[number]!r} in the run that made the "
                "weights; write names, and they are those of that run"
            )
    return names


def match_classes(ours: Sequence[str], theirs: Sequence[str], unknown: Collection[str] = ()) -> ClassMap:
    """Find each class of a data set among those of weights: by the same text, else by its wnid, else by a name.

    A name is what lies between commas, without case, punctuation and a leading number or wnid: ``laysan albatross`` in
    ``002.Laysan_Albatross``. Those of theirs that are ``unknown`` to the weights all the same are not found.

    Raises:
        UserError: none is found, one is several of the weights, or two are the same one; the line begins with
            ``classes``.
    """
    for name in ours if len(set(theirs)) < len(theirs) else ():
        if theirs.count(name) > 1:
            places = " and ".join(str(number) for number, text in enumerate(theirs) if text == name)
            raise UserError(
                f"classes: {name!r} of the data set stands {theirs.count(name)} times among those of the weights, as "
                f"numbers {places}; write the others otherwise"
            )
    rows = [None if row is None or theirs[row] in unknown else row for row in _find(ours, theirs)]
    first: dict[int, str] = {}
    for name, row in zip(ours, rows, strict=True):
        if row is not None and first.setdefault(row, name) != name:
            raise UserError(
                f"classes: {first[row]!r} and {name!r} of the data set are both {theirs[row]!r} of the weights, which "
                "cannot tell them apart; give a file with the data set's own names, a class of the weights a line"
            )
    if not first:
        raise UserError(
            f"classes: none of the data set's {len(ours)} classes, {ours[0]!r} for instance, is among the "
            f"{len(theirs):,} of the weights, as {theirs[0]!r}; give a file with the data set's own names, a class of "
            "the weights a line"
        )
    return ClassMap(tuple(ours), tuple(rows), len(theirs))


def _find(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    kinds = (lambda text: [text], _wnids, _names)
    tables = [_unique([keys(text) for text in theirs]) for keys in kinds]
    rows: list[int | None] = []
    for text in ours:
        # Another synset of the same name is another class.
        known_by = 2 if tables[1] and _wnids(text) else 3
        pairs = list(zip(tables, kinds, strict=True))[:known_by]
        found = (table.get(key) for table, keys in pairs for key in keys(text))
        rows.append(next((row for row in found if row is not None), None))
    return rows


def _unique(keys_of: Sequence[Sequence[str]]) -> dict[str, int]:
    """The number of the one class that has a key; keys of several are no use."""
    found: dict[str, int | None] = {}
    for number, keys in enumerate(keys_of):
        for key in keys:
            found[key] = number if found.get(key, number) == number else None
    return {key: number for key, number in found.items() if number is not None}


def _wnids(text: str) -> list[str]:
    match = WNID.match(text)
    return [match[0]] if match else []


def _names(text: str) -> list[str]:
    text = re.sub(r"^\d+[._ -]+", "", WNID.sub("", text, count=1) if WNID.match(text) else text)
    names = (re.sub(r"[\W_]+", " ", part).strip().casefold() for part in text.split(","))
    return [name for name in names if name]


@torch.no_grad()
def keep_classes(model: nn.Module, donor: nn.Module, found: ClassMap, *, fill: bool) -> None:
    """Copy the weights of a network for N classes into one for C that is else like it.

    The rows of classes that the weights do not know become ``UNKNOWN`` logits, or stay as they were drawn where they
    will be trained (not ``fill``).

    Raises:
        UserError: the network has no last layer of which rows could be kept, or no bias for those that it lacks.
    """
    own, theirs = model.state_dict(), donor.state_dict()
    heads = tuple(f"{module}." for module in classifier_modules(model))
    ours_K = torch.tensor([place for place, row in enumerate(found.rows) if row is not None])
    rows_K = torch.tensor([row for row in found.rows if row is not None])
    lacking = [place for place, row in enumerate(found.rows) if row is None]
    kept = []
    for name, value in own.items():
        of_classes = name.startswith(heads) and value.ndim and len(theirs[name]) == found.total
        if of_classes and len(value) == len(found.rows):
            value[ours_K] = theirs[name][rows_K]
            kept.append(value.ndim)
            if lacking and fill:
                value[lacking] = UNKNOWN if value.ndim == 1 else 0.0
        elif value.shape == theirs[name].shape:
            value.copy_(theirs[name])
        else:
            raise UserError(f"classes: {name} is of another shape for another number of classes, and no last layer")
    if not kept or (lacking and fill and 1 not in kept):
        what = "no bias, by which classes could be left out" if kept else "no rows of classes in its last layer"
        raise UserError(f"classes: the network has {what}; {found.line()}")
