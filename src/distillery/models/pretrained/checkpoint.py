"""Files of weights that other projects wrote: read without running any code in them, their names turned into ours."""

import argparse
import datetime
import pathlib
import pickle
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.errors import UserError
from distillery.models.pretrained.files import check_exists, file_kind
from distillery.models.weights import COUNTERS, StateDict

# Under which key training scripts keep the weights in a checkpoint. Averaged weights come first, because they are the
# ones whose accuracy is published.
NESTS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "model_ema_state_dict", "ema_model_state_dict", "ema_model",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights",
)  # fmt: skip
# A part of a key that says that the weights in it are averaged.
AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged)(?:$|[._])", re.IGNORECASE)

# Names that different code bases give to the same part.
SYNONYMS = (("fc", "linear", "classifier", "head"), ("downsample", "shortcut"))

# What DataParallel, torch.compile and Lightning put in front of every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Nest:
    """Weights found in a file: under which keys, joined by dots (none for those at the top), and by their names."""

    name: str
    state: StateDict

    @property
    def averaged(self) -> bool:
        """Whether its key says that these are moving averages."""
        return AVERAGED.search(self.name) is not None

    @property
    def known(self) -> bool:
        """Whether training scripts are known to keep weights there."""
        return not self.name or all(part in NESTS for part in self.name.split("."))


def read_checkpoint(path: Path) -> list[Nest]:
    """Read all weights of a file that torch.save wrote, the likeliest first: averaged ones, then by known keys.

    Raises:
        UserError: the file is missing, damaged or unsafe, or holds no weights.
    """
    check_exists(path)
    kind = file_kind(path)
    if kind is not None:
        raise UserError(f"{path}: cannot be read: it is {kind}")
    try:
        with _harmless_types(), warnings.catch_warnings():
            # Of old formats and kinds of tensors, which are said better below or by who takes the weights.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|type) ([\w]+(?:\.[\w]+)+)", str(error))
        what = "it holds Python objects besides tensors" if found is None else f"it holds a Python object, {found[1]}"
        raise UserError(
            f"{path}: cannot be read safely: it is damaged, or {what}, and making such objects can run any code; where "
            "you have the program that wrote it, load it there and save its state_dict() alone"
        ) from error
    # A damaged archive: torch raises RuntimeError, EOFError, KeyError or OSError, as it comes.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # Torch's own advice may be to load it unsafely.
        more = "" if "weights_only" in reason else f" ({reason})"
        raise UserError(f"{path}: cannot be read; it is damaged or was not written by torch.save{more}") from error
    nests = sorted(_nests(content), key=lambda nest: _rank(nest.name))
    if not nests:
        keys = f"; its keys: {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path}: holds no weights, alone or under {', '.join(NESTS)}{keys}")
    return nests


@contextmanager
def _harmless_types() -> Iterator[None]:
    """Allow the plain values that training scripts often keep beside the weights: options, paths, numpy's arrays."""
    kinds = [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "str",
    ]
    dtypes: list[Any] = [type(np.dtype(kind)) for kind in kinds]
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(1).__reduce__()[0]
    # Files of numpy 1 name the module without its underscore.
    aliases: list[Any] = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]
    paths: list[Any] = [
        *(getattr(pathlib, name) for name in ("PosixPath", "PurePosixPath", "PureWindowsPath")),
        (PureWindowsPath, "pathlib.WindowsPath"),
    ]
    plain: list[Any] = [argparse.Namespace, SimpleNamespace, defaultdict, datetime.datetime, datetime.timedelta]
    with torch.serialization.safe_globals([*plain, scalar, array, np.ndarray, np.dtype, *dtypes, *aliases, *paths]):
        yield


def _nests(content: object, name: str = "") -> Iterator[Nest]:
    """All mappings from names to tensors: in the nests that training scripts use, one level deep in any others, and two
    where averaged weights are.
    """
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if isinstance(value, Mapping) and (key in NESTS or not name or AVERAGED.search(name)):
            yield from _nests(value, f"{name}.{key}" if name else str(key))
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if all(key.rpartition(".")[2] in COUNTERS for key in state):
        # Beside tensors, numpy's arrays are notes of a training script.
        state |= {str(key): torch.as_tensor(value) for key, value in content.items() if _is_numbers(value)}
    if state:
        yield Nest(name, state)


def _is_numbers(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"


def _rank(name: str) -> tuple[object, ...]:
    first, _, rest = name.partition(".")
    place = NESTS.index(first) if first in NESTS else len(NESTS)
    return (not name, AVERAGED.search(name) is None, place, *(_rank(rest) if rest else ()))


def unwrap(state: StateDict, own: Collection[str]) -> StateDict:
    """Take away what wrappers put in front of every name, unless the model's own names begin like this."""
    names = [name for name in state if name.rpartition(".")[2] not in COUNTERS]
    for wrapper in WRAPPERS:
        wrapped = bool(names) and all(name.startswith(wrapper) for name in names)
        if wrapped and not all(name.startswith(wrapper) for name in own):
            return unwrap({name.removeprefix(wrapper): value for name, value in state.items()}, own)
    return state


def substitute(state: StateDict, rules: Iterable[tuple[str, str | Callable[[re.Match[str]], str]]]) -> StateDict:
    """Rename weights by regular expressions, each applied to what those before it made; no name is taken twice."""
    renamed: StateDict = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[name if new in state or new in renamed else new] = value
    return renamed


def translate(state: StateDict, own: Mapping[str, Tensor]) -> StateDict:
    """Rename what the model does not know to a synonym that it misses."""
    translated = {}
    for name, value in state.items():
        if name not in own:
            name = next((here for here in _synonyms(name) if here in own and here not in state), name)
        # A linear layer that is a 1 x 1 convolution here.
        unsqueezed = name in own and own[name].shape == (*value.shape, 1, 1)
        translated[name] = value[..., None, None] if unsqueezed else value
    return translated


def _synonyms(name: str) -> Iterator[str]:
    choices = [next((group for group in SYNONYMS if part in group), (part,)) for part in name.split(".")]
    return (".".join(choice) for choice in product(*choices))
