"""Every network by its name: a plugin's, the zoo of this project, then timm's, then torchvision's.

A new network of the zoo is one builder and one entry of `distillery.models.zoo.ZOO`. Libraries are imported when a name
needs them, and no sooner: the zoo's names cost nothing.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from distillery.errors import UserError, keyed
from distillery.experiment.plugins import is_plugin, load_plugin
from distillery.experiment.reading import nearest
from distillery.experiment.zoo import ZOO

if TYPE_CHECKING:
    from torch import nn


# What a run says elsewhere (classes: its data set; weights: `weights`), or what would fetch files behind its back.
RESERVED_ARGUMENTS = frozenset({
    "cache_dir", "checkpoint_path", "features_only", "name", "num_classes", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_strict", "progress", "scriptable", "weights", "weights_backbone",
})  # fmt: skip


def model_names() -> list[str]:
    """Every name that `create_model` knows, sorted. Imports timm and torchvision."""
    return sorted({*ZOO, *_timm_names(), *_torchvision_names()})


def is_model(name: str) -> bool:
    """Whether `create_model` knows a name. Imports nothing for a network of the zoo.

    Raises:
        UserError: a plugin that it names is no good.
    """
    return library_of(name) is not None


def explain_unknown(name: str) -> str:
    """Say that there is no model of this name, and which was probably meant."""
    model, _, tag = name.partition(".")
    if tag and library_of(model) == "timm":
        instead = f"write `model: {model}` and, to import them, `weights: timm:{tag}`"
        return f"no model {name!r}; a tag names weights: {instead}"
    if name.startswith("timm:"):
        known = _timm_names()
    elif name.startswith("torchvision:"):
        known = _torchvision_names()
    else:
        known = model_names()
    close = get_close_matches(bare_name(name), known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"no model {name!r}; {hint}valid: those of docs/models.md, and every classifier of timm and torchvision"


def create_model(name: str, num_classes: int, /, **model_args: Any) -> "nn.Module":  # noqa: ANN401
    """Build a network with fresh weights, drawn from torch's global generator.

    Args:
        name: a name of the zoo, of timm or of torchvision, looked for in this order; ``timm:NAME`` and
            ``torchvision:NAME`` choose; ``plugins.FILE:NAME`` is a function of a project's own.
        num_classes: width of the last layer; 0 for a network of timm that gives its embedding (B, D) instead.
        model_args: further arguments of the network's builder.

    Returns:
        A module from float images ``(B, 3, H, W)`` to logits ``(B, num_classes)``, in training mode as in evaluation.

    Raises:
        UserError: the name is unknown, or the network does not accept the arguments.
    """
    library = library_of(name)
    if library is None:
        raise UserError(f"model: {explain_unknown(name)}")
    if num_classes == 0 and library != "timm":
        raise UserError(f"model: {name!r} cannot be built without a classifier; only timm's networks can")
    reserved = sorted(RESERVED_ARGUMENTS & set(model_args))
    if reserved:
        raise UserError(
            f"model_args.{reserved[0]}: cannot be set here; classes come from the data set, weights from `weights`"
        )
    build = {"plugin": _build_plugin, "zoo": _build_zoo, "timm": _build_timm, "torchvision": _build_torchvision}[
        library
    ]
    try:
        return build(bare_name(name), num_classes, model_args)
    except UserError:
        raise
    # For wrong arguments, builders raise anything from TypeError to AssertionError.
    except Exception as error:
        if not model_args:
            raise UserError(f"model {name!r}: cannot be built: {_first_line(error)}") from error
        raise UserError(_explain_arguments(name, num_classes, model_args, error, build)) from error


def has_classifier(network: "nn.Module") -> bool:
    """Whether a network gives logits, and not its embedding in their place."""
    return getattr(network, "num_classes", None) != 0


def check_input(network: "nn.Module", name: str, size: int, num_classes: int) -> None:
    """Send one blank image of ``size`` x ``size`` pixels through a network and see that class scores come out.

    Changes nothing: evaluation mode, no gradient, no random draw.

    Raises:
        UserError: the network cannot take images of this size, or gives something else than ``(1, num_classes)``.
    """
    import torch

    patch = _patch_of(network)
    if patch and size % patch:
        raise UserError(
            f"model {name!r} cannot take images of {size} x {size} pixels (preprocess.size): its patches of {patch} "
            f"pixels would leave {size % patch} of them out; give {size - size % patch or patch} or "
            f"{size - size % patch + patch}"
        )
    parameter = next(network.parameters())
    training = network.training
    try:
        with torch.no_grad():
            logits_BC = network.eval()(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    # Each library words a vanished feature map or a fixed input size in an exception of its own.
    except Exception as error:
        raise UserError(
            f"model {name!r} cannot take images of {size} x {size} pixels (preprocess.size): {_first_line(error)}"
        ) from error
    finally:
        network.train(training)
    found = tuple(logits_BC.shape) if isinstance(logits_BC, torch.Tensor) else type(logits_BC).__name__
    if found != (1, num_classes) and not (num_classes == 0 and len(found) == 2):
        raise UserError(
            f"model {name!r} gives {found} for one image; expected class scores of shape {(1, num_classes)}"
        )


def _patch_of(network: "nn.Module") -> int:
    """How many pixels a side a patch of a vision transformer has, of which timm's see whole ones alone; else 0."""
    embed = getattr(network, "patch_embed", None)
    proj: Any = getattr(embed, "proj", None)
    # Others overlap, or are of feature maps.
    plain = getattr(proj, "in_channels", 0) == 3 and proj.kernel_size == proj.stride and not any(proj.padding)
    return int(proj.stride[0]) if plain and not getattr(embed, "dynamic_img_pad", False) else 0


def check_training(network: "nn.Module", name: str, size: int, images: int) -> None:
    """Send at most two of the ``images`` of the smallest batch through a copy of a network in training mode.

    Raises:
        UserError: it cannot be trained with so few images, or gives something else than class scores then.
    """
    import torch

    copied = deepcopy(network).train()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            logits_BC = copied(torch.zeros(min(images, 2), 3, size, size))
    except Exception as error:
        raise UserError(
            f"model {name!r} cannot be trained on a batch of {images} image{'' if images == 1 else 's'} of "
            f"{size} x {size} pixels on one device: "
            f"{_first_line(error)}; raise `batch` or `preprocess.size`, or set `drop_last: true`"
        ) from error
    if not isinstance(logits_BC, torch.Tensor):
        raise UserError(
            f"model {name!r} gives {type(logits_BC).__name__} in training mode; expected class scores as in "
            "evaluation; switch its auxiliary outputs off in model_args"
        )


def weights_without_gradient(network: "nn.Module", size: int, images: int) -> list[str]:
    """Names of the parameters on which class scores in training do not depend; as ``check_training``, on a copy."""
    import torch

    copied = deepcopy(network).train()
    with torch.random.fork_rng():
        copied(torch.zeros(min(images, 2), 3, size, size)).sum().backward()
    return [name for name, value in copied.named_parameters() if value.requires_grad and value.grad is None]


def bare_name(name: str) -> str:
    """A name without the prefix that chooses its library."""
    return name.removeprefix("timm:").removeprefix("torchvision:")


def library_of(name: str) -> str | None:
    """Find which library a name belongs to: plugin, zoo, timm or torchvision; None if it is unknown."""
    if is_plugin(name):
        with keyed("model"):
            load_plugin(name)
        return "plugin"
    if name in ZOO:
        return "zoo"
    bare = bare_name(name)
    # timm's tags (resnet50.a1_in1k) and hubs (hf-hub:...) name weights, which are no part of a model's name here.
    if re.fullmatch(r"[A-Za-z0-9_]+", bare) is None:
        return None
    if not name.startswith("torchvision:"):
        import timm

        if timm.is_model(bare):
            return "timm"
    if not name.startswith("timm:") and bare in _torchvision_names():
        return "torchvision"
    return None


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _torchvision_names() -> list[str]:
    """Only classifiers: torchvision also registers detectors, segmenters and quantised networks."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _build_plugin(name: str, num_classes: int, model_args: Mapping[str, Any]) -> "nn.Module":
    network = load_plugin(name)(num_classes, **model_args)
    if not hasattr(network, "state_dict"):
        raise UserError(f"model {name!r}: must give a torch.nn.Module; it gave a {type(network).__name__}")
    return cast("nn.Module", network)


def _build_zoo(name: str, num_classes: int, model_args: Mapping[str, Any]) -> "nn.Module":
    entry = ZOO[name]
    for argument in model_args:
        if argument in entry.fixed:
            raise UserError(f"model_args.{argument}: cannot be set here; the model's name {name!r} says it")
    return _zoo_builder(name)(num_classes, **entry.fixed, **model_args)


def _zoo_builder(name: str) -> "Callable[..., nn.Module]":
    module, _, function = ZOO[name].builder.partition(":")
    builder: Callable[..., nn.Module] = getattr(import_module(module), function)
    return builder


def _build_timm(name: str, num_classes: int, model_args: Mapping[str, Any]) -> "nn.Module":
    import timm

    return timm.create_model(name, pretrained=False, num_classes=num_classes, **model_args)


def _build_torchvision(name: str, num_classes: int, model_args: Mapping[str, Any]) -> "nn.Module":
    import torchvision

    # Auxiliary heads make a network return a tuple while it trains; no objective here reads them.
    fixed = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **{**fixed, **model_args}
    )
    return network


def _explain_arguments(
    name: str,
    num_classes: int,
    model_args: Mapping[str, Any],
    error: Exception,
    build: Callable[[str, int, Mapping[str, Any]], "nn.Module"],
) -> str:
    """Say which of a model's arguments is wrong, and which it might have meant."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None or unknown[1] not in model_args:
        given = ", ".join(f"{key}: {value!r}" for key, value in model_args.items())
        return f"model_args: {name} cannot be built with {{{given}}}: {_first_line(error)}"
    where = f"model_args.{unknown[1]}: {name} has no argument {unknown[1]!r}"
    if is_plugin(name):
        builder = load_plugin(name)
    else:
        builder = _zoo_builder(name) if name in ZOO else type(build(bare_name(name), num_classes, {})).__init__
    accepted = [
        parameter.name
        for parameter in list(inspect.signature(builder).parameters.values())[1:]
        if isinstance(parameter.default, bool | int | float | str | None)
    ]
    said_by_name = ZOO[name].fixed.keys() if name in ZOO else set()
    return f"{where}; {nearest(unknown[1], sorted(set(accepted) - RESERVED_ARGUMENTS - said_by_name))}"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
