"""Files of weights that other projects wrote: read without running any code in them, their names turned into ours."""

import argparse
import pickle
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distillery.errors import UserError
from distillery.models.weights import COUNTERS, StateDict, check_exists

# Under which key training scripts keep the weights in a checkpoint. Averaged weights come first, because they are the
# ones whose accuracy is published.
NESTS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model_state", "model",
    "net", "network", "weights",
)  # fmt: skip

# Names that different code bases give to the same part.
SYNONYMS = (("fc", "linear", "classifier", "head"), ("downsample", "shortcut"))

# What DataParallel, torch.compile and Lightning put in front of every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def read_checkpoint(path: Path) -> StateDict:
    """Read the weights out of a file that torch.save wrote, wherever in it they are.

    Raises:
        UserError: the file is missing, damaged or unsafe, or holds no weights.
    """
    check_exists(path)
    try:
        with _harmless_types():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: cannot be read safely: it is damaged or holds Python objects besides tensors; where you trust "
            "it, load it with torch.load(..., weights_only=False) and save its state_dict() alone"
        ) from error
    # A damaged archive: torch raises RuntimeError, EOFError, KeyError or OSError, as it comes.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read; it is damaged or was not written by torch.save ({reason})") from error
    state = _find_state(content)
    if not state:
        keys = f"; its keys: {', '.join(map(str, list(content)[:8]))}" if isinstance(content, Mapping) else ""
        raise UserError(f"{path}: holds no weights, alone or under {', '.join(NESTS)}{keys}")
    return state


@contextmanager
def _harmless_types() -> Iterator[None]:
    """Allow the plain values that training scripts often keep beside the weights: options and numpy scalars."""
    scalar: Any = np.float64(0).__reduce__()[0]
    dtypes: list[Any] = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    with torch.serialization.safe_globals([argparse.Namespace, scalar, np.dtype, *dtypes]):
        yield


def _find_state(content: object) -> StateDict:
    """Look for the mapping from names to tensors, in the nests that training scripts use."""
    if not isinstance(content, Mapping):
        return {}
    for nest in NESTS:
        if isinstance(content.get(nest), Mapping) and (state := _find_state(content[nest])):
            return state
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


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
