"""Weights that were not made here: files of other projects, and what timm and torchvision publish."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from distillery.experiment.schema.recipe import Preprocess
from distillery.experiment.zoo import ZOO
from distillery.models.pretrained import efficientnet
from distillery.models.pretrained.checkpoint import read_checkpoint, translate, unwrap
from distillery.models.pretrained.hub import timm_weights, torchvision_weights
from distillery.models.weights import StateDict, copy_weights, read_safetensors


def import_weights(
    model: nn.Module, source: str, name: str, model_args: Mapping[str, Any] | None = None, new_classifier: bool = False
) -> Preprocess | None:
    """Read weights into a model, in place; every weight must find its place.

    Args:
        model: what `create_model` built.
        source: ``torchvision:TAG`` or ``timm:TAG``, which download; or a file: safetensors, or anything that
            ``torch.save`` wrote (.pth, .pt, .th, .tar, .bin, .ckpt) with tensors and plain values inside.
        name: the model's name.
        model_args: its further arguments.
        new_classifier: leave the model's last layer as it was drawn; the weights for it are left out.

    Returns:
        How images must be prepared for these weights, where the source says it.

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
        state = fit_names(found, model, name)
    copy_weights(model, state, source, without=classifier_modules(model) if new_classifier else ())
    return preprocess


def fit_names(found: StateDict, model: nn.Module, name: str) -> StateDict:
    """Give the weights of a file the names that they have in the model ``name``, as far as these can be known."""
    own = model.state_dict()
    bare = unwrap(found, own)
    module = import_module(ZOO[name].builder.partition(":")[0]) if name in ZOO else efficientnet
    ours = getattr(module, "checkpoint_filter_fn", lambda state, model: state)
    state = translate(ours(bare, model), own)
    # timm keeps the names of the original implementations beside its networks.
    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if rename is None or own.keys() <= state.keys():
        return state
    try:
        renamed: StateDict = rename(dict(bare), model)
    # It is made for files of known networks; for others, the message about the names says more than its error.
    except Exception:
        return state
    return renamed if own.keys() <= renamed.keys() else state


def classifier_modules(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that make the logits: as timm has them, else the last layer with a matrix of weights."""
    known = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if known:
        return (known,) if isinstance(known, str) else tuple(known)
    return ([name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1],)
