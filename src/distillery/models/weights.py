"""Weights in and out: this project's own files, files of other projects, and what timm and torchvision publish.

Own files are safetensors, whose bytes depend on the weights alone. Foreign files are read without running any code
that they may contain.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from distillery.atomic import replace_file
from distillery.config.schema.recipe import Preprocess
from distillery.errors import UserError
from distillery.models.foreign import COUNTERS, StateDict, read_checkpoint, read_safetensors, translate, unwrap
from distillery.models.published import timm_weights, torchvision_weights


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers as safetensors, whole or not at all.

    Equal weights give equal bytes, whatever device or memory format they are in.
    """
    # A copy of each: safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    # Written here, because safetensors' own writer makes files that nobody else may read.
    with replace_file(path) as temporary:
        temporary.write_bytes(save(state, metadata={"format": "pt"}))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model, in place, on whatever device it is.

    Raises:
        UserError: the file is missing or damaged, or belongs to another network.
    """
    _copy_into(model, read_safetensors(path), str(path))


def import_weights(
    model: nn.Module,
    source: str,
    name: str,
    model_args: Mapping[str, Any] | None = None,
    new_classifier: bool = False,
) -> Preprocess | None:
    """Read weights into a model, in place; every weight must find its place.

    Args:
        model: what `create_model` built.
        source: ``torchvision:TAG`` or ``timm:TAG``, which download; or a file: safetensors, or anything that
            ``torch.save`` wrote (.pth, .pt, .th, .tar, .bin, .ckpt) with tensors and plain values inside.
        name: the model's name.
        model_args: its further arguments.
        new_classifier: leave the model's last layer as it was drawn, whatever the weights have for it.

    Returns:
        How images must be prepared for these weights, where the source tells.

    Raises:
        UserError: the file is missing, damaged, unsafe or belongs to another network; the tag is unknown; or the
            download failed, and then the line says what to fetch by hand.
    """
    library, _, tag = source.partition(":")
    preprocess = None
    if library == "torchvision" and tag:
        state, preprocess = torchvision_weights(model, tag, name, model_args or {})
    elif library == "timm" and tag:
        state, preprocess = timm_weights(tag, name, model_args or {})
    else:
        path = Path(source)
        found = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        state = _fit_names(found, model)
    _copy_into(model, state, source, without=classifier_modules(model) if new_classifier else ())
    return preprocess


def _fit_names(found: StateDict, model: nn.Module) -> StateDict:
    """Give the weights of a file the names that they have in the model, as far as these can be known."""
    own = model.state_dict()
    state = translate(unwrap(found, own), own)
    # timm keeps the namings of the original implementations beside its networks.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None or own.keys() <= state.keys():
        return state
    try:
        renamed: StateDict = rename(dict(unwrap(found, own)), model)
    # It is made for files of known networks; whatever it makes of others, the message about the names says it better.
    except Exception:
        return state
    return renamed if own.keys() <= renamed.keys() else state


def classifier_modules(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that make the logits: as timm tells, else the last layer with a matrix of weights."""
    known = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if known:
        return (known,) if isinstance(known, str) else tuple(known)
    return ([name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1],)


def _copy_into(model: nn.Module, state: StateDict, source: str, without: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly; only counters, and what lies in the modules ``without``, may be missing or left over.

    Raises:
        UserError: a name or a shape does not fit, or a weight is no finite number.
    """
    skipped = tuple(f"{module}." for module in without)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(skipped)}
    state = {name: value for name, value in state.items() if not name.startswith(skipped)}
    missing = [name for name in own if name not in state and name.rpartition(".")[2] not in COUNTERS]
    unknown = [name for name in state if name not in own and name.rpartition(".")[2] not in COUNTERS]
    if missing or unknown:
        faults = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("also has", unknown)) if names]
        raise UserError(f"{source}: weights of another network: the file {'; it '.join(faults)}")
    unequal = [name for name in own if name in state and state[name].shape != own[name].shape]
    if unequal:
        raise UserError(f"{source}: {_explain_shapes(unequal, state, own)}")
    broken = [name for name in own if name in state and not torch.isfinite(state[name]).all()]
    if broken:
        raise UserError(f"{source}: weights that are NaN or infinite: {_some(broken)}")
    model.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def _explain_shapes(unequal: list[str], state: StateDict, own: StateDict) -> str:
    """Tell a last layer for another number of classes from a network of another shape."""
    widths = {(state[name].shape[:1], own[name].shape[:1]) for name in unequal}
    same_inside = all(state[name].shape[1:] == own[name].shape[1:] for name in unequal)
    if len(unequal) <= 2 and len(widths) == 1 and same_inside:
        ((theirs, ours),) = widths
        return (
            f"weights for {theirs[0]} classes ({unequal[0]}), but the data set has {ours[0]}; "
            "to train from them with a new last layer, write new_classifier: true"
        )
    shown = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in unequal]
    return f"weights of another network: {_some(shown)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
