"""Weights that were not made here: files of other projects, and what timm and torchvision publish."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from distillery.errors import UserError
from distillery.experiment.ledger import file_sha256
from distillery.experiment.schema.block import WeightsChoice
from distillery.experiment.schema.recipe import Preprocess
from distillery.experiment.zoo import ZOO
from distillery.models.pretrained import efficientnet
from distillery.models.pretrained.checkpoint import Nest, read_checkpoint, translate, unwrap
from distillery.models.pretrained.hub import timm_weights, torchvision_weights
from distillery.models.weights import COUNTERS, StateDict, copy_weights, misfit, read_safetensors

# Take the likeliest weights, whole.
AS_FOUND = WeightsChoice()


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
    return take_weights(model, source, name, model_args, new_classifier).preprocess


@dataclass(frozen=True)
class Taken:
    """What was taken out of a source of weights.

    Attributes:
        preprocess: how images must be prepared for them, where the source says it.
        averaged: whether they are moving averages.
        facts: for run.json: of a file its sha256, the nest, the number and kind of tensors, and what else was there.
    """

    preprocess: Preprocess | None = None
    averaged: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    def line(self, source: str) -> str | None:
        """The facts in words; None for a library's weights."""
        if not self.facts:
            return None
        where = f"`{self.facts['nest']}`" if self.facts["nest"] else "all of the file"
        stripped = f", the prefix {self.facts['prefix']!r} taken away" if self.facts["prefix"] else ""
        others = f"; left: {', '.join(self.facts['others'])}" if self.facts["others"] else ""
        averaged = " (averaged weights)" if self.averaged else ""
        count = f"{self.facts['tensors']} tensors of {self.facts['dtype']}"
        return f"{source}: took {where}{averaged}, {count}{stripped}{others}"


def take_weights(
    model: nn.Module,
    source: str,
    name: str,
    model_args: Mapping[str, Any] | None = None,
    new_classifier: bool = False,
    choice: WeightsChoice = AS_FOUND,
) -> Taken:
    """As `import_weights`; ``choice`` says what of a file to take, and the answer what was taken."""
    library, _, tag = source.partition(":")
    without = classifier_modules(model) if new_classifier else ()
    if library == "torchvision" and tag:
        state, preprocess = torchvision_weights(model, tag, name, model_args or {})
    elif library == "timm" and tag:
        state, preprocess = timm_weights(tag, name, model_args or {})
    else:
        return _take_file(model, Path(source).expanduser(), source, name, without, choice)
    copy_weights(model, state, source, without)
    return Taken(preprocess)


def _take_file(
    model: nn.Module, path: Path, source: str, name: str, without: tuple[str, ...], choice: WeightsChoice
) -> Taken:
    nests = [Nest("", read_safetensors(path))] if path.suffix == ".safetensors" else read_checkpoint(path)
    if choice.nest is not None:
        named = [nest for nest in nests if nest.name == choice.nest]
        if not named:
            known = ", ".join(nest.name for nest in nests if nest.name) or "none"
            raise UserError(f"{source}: no weights under {choice.nest!r} (nest); there are: {known}")
    candidates = named if choice.nest is not None else nests
    fitted = [(nest, *_fit(model, nest.state, name, without, choice)) for nest in candidates]
    fitting = [(nest, state, prefix) for nest, state, prefix in fitted if misfit(model, state, without) is None]
    nest, state, prefix = (fitting or fitted)[0]
    rivals = [other.name or "the top" for other, _, _ in fitting if other.averaged == nest.averaged]
    if fitting and not nest.known and len(rivals) > 1:
        raise UserError(f"{source}: several weights fit: {', '.join(rivals)}; say which by nest: {rivals[0]}")
    if not fitting and choice.prefix is None and (prefixes := _fitting_prefixes(model, nest.state, name, without)):
        raise UserError(
            f"{source}: {misfit(model, state, without)}; what begins with {' or with '.join(map(repr, prefixes))} "
            f"fits: write prefix: {prefixes[0]}"
        )
    copy_weights(model, state, source, without)
    kinds = dict.fromkeys(str(value.dtype).removeprefix("torch.") for value in state.values())
    facts = {
        "sha256": file_sha256(path),
        "nest": nest.name,
        "prefix": prefix,
        "tensors": len(nest.state),
        "dtype": ", ".join(kinds),
        "others": [other.name or "the top" for other in nests if other is not nest],
    }
    return Taken(None, nest.averaged, facts)


def _fit(
    model: nn.Module, state: StateDict, name: str, without: tuple[str, ...], choice: WeightsChoice
) -> tuple[StateDict, str]:
    """Give weights the model's names; with which prefix was taken away, a chosen or a common one."""
    state = {key: value for key, value in state.items() if not any(fnmatchcase(key, drop) for drop in choice.ignore)}
    if choice.prefix is not None:
        stripped = {key.removeprefix(choice.prefix): v for key, v in state.items() if key.startswith(choice.prefix)}
        return fit_names(stripped, model, name), choice.prefix
    fitted = stripped = fit_names(state, model, name)
    prefix = ""
    while misfit(model, stripped, without) is not None:
        names = [key for key in state if key.rpartition(".")[2] not in COUNTERS]
        prefixes = {key.removeprefix(prefix).partition(".")[0] for key in names}
        if len(prefixes) != 1 or any("." not in key.removeprefix(prefix) for key in names):
            return fitted, ""
        prefix += f"{prefixes.pop()}."
        stripped = fit_names({key.removeprefix(prefix): value for key, value in state.items()}, model, name)
    return stripped, prefix


def _fitting_prefixes(model: nn.Module, state: StateDict, name: str, without: tuple[str, ...]) -> list[str]:
    """Prefixes of which each alone has a whole network."""
    prefixes = dict.fromkeys(f"{key.partition('.')[0]}." for key in state if "." in key)
    fits = [_fit(model, state, name, without, WeightsChoice(prefix=prefix))[0] for prefix in prefixes]
    return [prefix for prefix, fitted in zip(prefixes, fits, strict=True) if misfit(model, fitted, without) is None]


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
