"""What timm and torchvision publish: weights by their tags, with how images must be prepared for them."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from distillery.errors import UserError
from distillery.experiment.reading import nearest
from distillery.experiment.schema.block import Statistics
from distillery.experiment.schema.recipe import Preprocess
from distillery.experiment.zoo import ZOO
from distillery.models.registry import bare_name

Published = tuple[dict[str, Tensor], Preprocess | None]


def torchvision_weights(model: nn.Module, tag: str, name: str, model_args: Mapping[str, Any]) -> Published:
    """Download weights of torchvision for ``model``, which `create_model` built as ``name`` with ``model_args``.

    Raises:
        UserError: there is no such tag; or the download failed, and then the line says what to fetch by hand.
    """
    from torchvision.models import get_model, get_model_weights, list_models

    bare, model_args = _donor("torchvision", name, model_args)
    tags = [weights.name for weights in get_model_weights(bare)] if bare in list_models() else []
    if tag not in tags:
        raise UserError(f"weights: torchvision has no {tag!r} for {name}; {nearest(tag, tags)}")
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
    return donor.state_dict(), preprocess


def timm_weights(tag: str, name: str, model_args: Mapping[str, Any]) -> Published:
    """Download weights of timm for the network ``name`` with ``model_args``.

    Raises:
        UserError: there is no such tag; or the download failed, and then the line says what to fetch by hand.
    """
    import timm
    import timm.data

    bare, model_args = _donor("timm", name, model_args)
    known = timm.list_pretrained(f"{bare}.*") if timm.is_model(bare) else []
    tags = [full.partition(".")[2] for full in known]
    if tag not in tags:
        raise UserError(f"weights: timm has no {tag!r} for {name}; {nearest(tag, tags)}")
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
    return donor.state_dict(), preprocess


def _donor(library: str, name: str, model_args: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The network of a library whose published weights fit a model, and its arguments; no name where there is none."""
    if name not in ZOO:
        return bare_name(name), model_args
    owner, _, donor = ZOO[name].weights_of.partition(":")
    return donor if owner == library else "", {}


def _download(build: Callable[[], nn.Module], file: str, source: str, preprocess: Preprocess | None) -> nn.Module:
    try:
        return build()
    # Proxies, firewalls, timeouts, full disks and wrong checksums: each library raises its own.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = ""
        if preprocess is not None:
            advice = f" and preprocess: {_flow_yaml(preprocess.model_dump(mode='json', exclude_defaults=True))}"
        raise UserError(
            f"weights: {source} could not be downloaded ({reason}); fetch {file} on a machine with network access, "
            f"copy it here, and write weights: PATH_OF_THE_FILE{advice}"
        ) from error


def _flow_yaml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow_yaml, value)) + "]"
    return str(value)
