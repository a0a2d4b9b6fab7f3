"""Weights in and out: this project's own files, files of other projects, and what timm and torchvision publish.

Own files are safetensors, whose bytes depend on the weights alone. Foreign files are read without running any code
that they may contain.
"""

import argparse
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distillery.atomic import replace_file
from distillery.config.reading import nearest
from distillery.config.schema.recipe import Preprocess, Statistics
from distillery.errors import UserError
from distillery.models.registry import ZOO, bare_name

StateDict = dict[str, Tensor]

# Under which key training scripts keep the weights in a checkpoint. Averaged weights come first, because they are the
# ones whose accuracy is published.
NESTS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
)

# What DataParallel, torch.compile and Lightning put in front of every name.
WRAPPERS = ("module.", "_orig_mod.", "model.")

# Names that different code bases give to the same part.
SYNONYMS = (("fc", "linear", "classifier", "head"), ("downsample", "shortcut"))

# Counters that some tools leave among the weights.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


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
    _copy_into(model, _read_safetensors(path), str(path))


def import_weights(
    model: nn.Module, source: str, name: str, model_args: Mapping[str, Any] | None = None
) -> Preprocess | None:
    """Read published weights into a model, in place; every weight must find its place.

    Args:
        model: what `create_model` built.
        source: ``torchvision:TAG`` or ``timm:TAG``, which download; or a file: safetensors, or anything that
            ``torch.save`` wrote (.pth, .pt, .th, .tar, .bin, .ckpt) with tensors and plain values inside.
        name: the model's name.
        model_args: its further arguments.

    Returns:
        How images must be prepared for these weights, where the source tells.

    Raises:
        UserError: the file is missing, damaged, unsafe or belongs to another network; the tag is unknown; or the
            download failed, and then the line says what to fetch by hand.
    """
    library, _, tag = source.partition(":")
    if library == "torchvision" and tag:
        return _import_torchvision(model, tag, name, model_args or {})
    if library == "timm" and tag:
        return _import_timm(model, tag, name, model_args or {})
    path = Path(source)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    own = model.state_dict().keys()
    _copy_into(model, _translate(_unwrap(state, own), own), source)
    return None


# --- published weights -------------------------------------------------------------------------------------------


def _import_torchvision(model: nn.Module, tag: str, name: str, model_args: Mapping[str, Any]) -> Preprocess:
    from torchvision.models import get_model, get_model_weights, list_models

    bare = bare_name(name)
    tags = [] if name in ZOO or bare not in list_models() else [weights.name for weights in get_model_weights(bare)]
    if tag not in tags:
        raise UserError(f"weights: torchvision has no {tag!r} for {bare}; {nearest(tag, tags)}")
    published = get_model_weights(bare)[tag]
    transforms = published.transforms()
    preprocess = Preprocess(
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        normalize=Statistics(mean=tuple(transforms.mean), std=tuple(transforms.std)),
    )
    # torchvision's own builder translates old names and drops auxiliary heads.
    arguments = {"aux_logits": False, **model_args} if bare in ("googlenet", "inception_v3") else model_args
    donor = _download(
        lambda: get_model(bare, weights=published, progress=sys.stderr.isatty(), **arguments),
        published.url,
        f"torchvision:{tag}",
        preprocess,
    )
    if getattr(donor, "transform_input", False) and not getattr(model, "transform_input", True):
        raise UserError(f"model_args: torchvision's weights of {bare} need {{transform_input: true}}")
    _copy_into(model, donor.state_dict(), f"torchvision:{tag}")
    return preprocess


def _import_timm(model: nn.Module, tag: str, name: str, model_args: Mapping[str, Any]) -> Preprocess | None:
    import timm
    import timm.data

    bare = bare_name(name)
    known = timm.list_pretrained(f"{bare}.*") if name not in ZOO and timm.is_model(bare) else []
    tags = [full.partition(".")[2] for full in known]
    if tag not in tags:
        raise UserError(f"weights: timm has no {tag!r} for {bare}; {nearest(tag, tags)}")
    published: Any = timm.get_pretrained_cfg(f"{bare}.{tag}")
    resolve_data_config: Any = timm.data.resolve_data_config  # type: ignore[attr-defined]
    wanted = resolve_data_config(pretrained_cfg=published.to_dict())
    size = wanted["input_size"][-1]
    preprocess = None
    if wanted["crop_mode"] == "center":
        preprocess = Preprocess(
            size=size,
            resize=int(size / wanted["crop_pct"]),
            interpolation=wanted["interpolation"],
            normalize=Statistics(mean=tuple(wanted["mean"]), std=tuple(wanted["std"])),
        )
    # Built with the classes of the weights: timm would put a random head on any other number without a word.
    file = f"model.safetensors of {published.hf_hub_id}" if published.hf_hub_id else published.url
    donor = _download(
        lambda: timm.create_model(f"{bare}.{tag}", pretrained=True, **model_args), file, f"timm:{tag}", preprocess
    )
    _copy_into(model, donor.state_dict(), f"timm:{tag}")
    return preprocess


def _download(build: Callable[[], nn.Module], file: str, source: str, preprocess: Preprocess | None) -> nn.Module:
    try:
        return build()
    # Proxies, firewalls, timeouts, full disks and wrong checksums: each library raises its own.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        told = "" if preprocess is None else f" and preprocess: {_flow_yaml(preprocess.model_dump(mode='json'))}"
        raise UserError(
            f"weights: {source} could not be downloaded ({reason}); fetch {file} on a machine with network access, "
            f"copy it here, and write weights: PATH_OF_THE_FILE{told}"
        ) from error


def _flow_yaml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow_yaml, value)) + "]"
    return str(value)


# --- files -------------------------------------------------------------------------------------------------------


def _read_safetensors(path: Path) -> StateDict:
    _check_exists(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error


def _read_checkpoint(path: Path) -> StateDict:
    """Read the weights out of a file that torch.save wrote, wherever in it they are."""
    _check_exists(path)
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


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path}: {'is no file' if path.exists() else 'no such file'}; expected a file of weights")


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


def _unwrap(state: StateDict, own: Mapping[str, object] | Any) -> StateDict:  # noqa: ANN401
    """Take away what wrappers put in front of every name, unless the model's own names begin like this."""
    names = [name for name in state if name.rpartition(".")[2] not in COUNTERS]
    for wrapper in WRAPPERS:
        wrapped = bool(names) and all(name.startswith(wrapper) for name in names)
        if wrapped and not all(name.startswith(wrapper) for name in own):
            return _unwrap({name.removeprefix(wrapper): value for name, value in state.items()}, own)
    return state


def _translate(state: StateDict, own: Mapping[str, object] | Any) -> StateDict:  # noqa: ANN401
    """Rename what the model does not know to what it misses, where only a synonym stands between them."""
    translated = {}
    for name, value in state.items():
        if name not in own:
            name = next((other for other in _synonyms(name) if other in own and other not in state), name)
        translated[name] = value
    return translated


def _synonyms(name: str) -> Iterator[str]:
    choices = []
    for part in name.split("."):
        group = next((group for group in SYNONYMS if part in group), (part,))
        choices.append(group)
    for parts in product(*choices):
        yield ".".join(parts)


# --- into the model ----------------------------------------------------------------------------------------------


def _copy_into(model: nn.Module, state: StateDict, source: str) -> None:
    """Load a state dict strictly; only counters may be missing or left over."""
    own = model.state_dict()
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
        return f"weights for {theirs[0]} classes ({unequal[0]}), but the data set has {ours[0]}"
    shown = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in unequal]
    return f"weights of another network: {_some(shown)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
