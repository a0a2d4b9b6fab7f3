"""Weights in and out, as safetensors: files whose bytes depend on the weights alone.

`distillery.models.pretrained.load` reads what others wrote.
"""

from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distillery.atomic import replace_file
from distillery.errors import UserError
from distillery.models.pretrained.files import check_exists

StateDict = dict[str, Tensor]

# Counters that some tools leave among the weights.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers as safetensors, whole or not at all.

    Equal weights give equal bytes, on any device and in any memory format.
    """
    # Written here, because safetensors' own writer makes files that only their owner may read.
    with replace_file(path) as temporary:
        temporary.write_bytes(_as_bytes(model))


def weights_sha256(model: nn.Module) -> str:
    """The SHA-256 of the file that `save_weights` would write, 64 hex digits."""
    return sha256(_as_bytes(model)).hexdigest()


def _as_bytes(model: nn.Module) -> bytes:
    # A copy of each: safetensors refuses tensors that share memory, as tied weights do.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    content: bytes = save(state, metadata={"format": "pt"})
    return content


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a model, in place, on any device.

    Raises:
        UserError: the file is missing or damaged, or belongs to another network.
    """
    copy_weights(model, read_safetensors(path), str(path))


def read_safetensors(path: Path) -> StateDict:
    """Read a file of safetensors.

    Raises:
        UserError: the file is missing or damaged.
    """
    check_exists(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error


def copy_weights(model: nn.Module, state: StateDict, source: str, without: tuple[str, ...] = ()) -> None:
    """Load a state dict strictly; only counters, and what lies in the modules ``without``, may be missing or left over.

    Raises:
        UserError: a name or a shape does not fit, or a weight is no finite number.
    """
    fault = misfit(model, state, without)
    if fault is not None:
        raise UserError(f"{source}: {fault}")
    skipped = tuple(f"{module}." for module in without)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(skipped)}
    model.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def misfit(model: nn.Module, state: StateDict, without: tuple[str, ...] = ()) -> str | None:
    """What keeps a state dict from being loaded into a model, modules ``without`` aside; None if it fits exactly."""
    skipped = tuple(f"{module}." for module in without)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(skipped)}
    state = {name: value for name, value in state.items() if not name.startswith(skipped)}
    missing = [name for name in own if name not in state and name.rpartition(".")[2] not in COUNTERS]
    unknown = [name for name in state if name not in own and name.rpartition(".")[2] not in COUNTERS]
    if missing or unknown:
        faults = [f"{word} {_some(names)}" for word, names in (("lacks", missing), ("also has", unknown)) if names]
        return f"weights of another network: the file {'; it '.join(faults)}"
    unequal = [name for name in own if name in state and state[name].shape != own[name].shape]
    if unequal:
        return _explain_shapes(unequal, state, own)
    given = {name: state[name] for name in own if name in state and own[name].is_floating_point()}
    odd = [name for name, value in given.items() if value.layout != torch.strided or value.is_meta]
    if odd:
        kind = "without numbers" if given[odd[0]].is_meta else str(given[odd[0]].layout).removeprefix("torch.")
        return f"weights that are no plain tensors: {_some(odd)} ({kind}); save them whole, as to_dense() makes them"
    quantised = [name for name, value in given.items() if value.is_quantized or not value.is_floating_point()]
    if quantised:
        kind = str(given[quantised[0]].dtype).removeprefix("torch.")
        return (
            f"weights that are no floating-point numbers: {_some(quantised)} ({kind}); give those before quantisation"
        )
    broken = [name for name, value in given.items() if not torch.isfinite(value).all()]
    if broken:
        return f"weights that are NaN or infinite: {_some(broken)}"
    negative = [name for name, value in given.items() if name.endswith("running_var") and (value.float() < 0).any()]
    if negative:
        return f"variances below 0: {_some(negative)}"
    large = [name for name, value in given.items() if not torch.isfinite(value.to(own[name].dtype)).all()]
    if large:
        return f"weights too large for {str(own[large[0]].dtype).removeprefix('torch.')}: {_some(large)}"
    return None


def _explain_shapes(unequal: list[str], state: StateDict, own: StateDict) -> str:
    """Distinguish a last layer for another number of classes from a network of another shape."""
    widths = {(state[name].shape[:1], own[name].shape[:1]) for name in unequal}
    same_inside = all(state[name].shape[1:] == own[name].shape[1:] for name in unequal)
    modules, last = {name.rpartition(".")[0] for name in unequal}, list(own)[-1].rpartition(".")[0]
    if modules == {last} and len(unequal) <= 2 and len(widths) == 1 and same_inside:
        ((theirs, ours),) = widths
        return (
            f"weights for {theirs[0]} class{'' if theirs[0] == 1 else 'es'} ({unequal[0]}), and not for {ours[0]}; "
            "say by `classes` which they know, all in their order, or, to train from them with a new last layer, write "
            "new_classifier: true"
        )
    shown = [f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}" for name in unequal]
    return f"weights of another network: {_some(shown)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
