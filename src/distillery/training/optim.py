"""Optimizers and learning rates, as the recipe states them: nothing here is scaled by the number of devices."""

import inspect
import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from distillery.errors import UserError
from distillery.experiment.reading import nearest
from distillery.experiment.schema.recipe import AdamW, Optimizer, Recipe, Sgd
from distillery.imports import uncompiled_optimizer
from distillery.training.schedules import (
    absolute_warmup_lr,
    cosine_lr,
    every_to_drops,
    ratio_warmup_factor,
    step_lr,
    stepwise_warmup_factor,
)

# Arguments of timm's optimizers by which something of before decays, from step to step.
SHARES = frozenset({"momentum", "betas", "betas_1d", "beta2_cap", "alpha", "rho", "dampening"})

# So many parameters lie in a CPU's cache, where one call for all tensors is quicker than one for each, as on GPUs; of
# more, each tensor is better stepped while it is there. The bits are the same.
MOST_AT_ONCE = 2**20


def build_optimizer(
    config: Optimizer, module: nn.Module, exempt: Iterable[str] = (), *, fused: bool = False
) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over every trainable parameter of ``module``, by its name in timm.

    ``fused`` takes its steps in one kernel, where torch has one of it.

    SGD decays all weights, as the reference systems do. The others do not decay vectors (biases, norms) nor the
    parameters whose names fit one of ``exempt`` (a model's own ``no_weight_decay()``, with wildcards as in timm).

    Raises:
        UserError: timm has no such optimizer, it cannot be used here, or it does not take these arguments.
    """
    exempt = tuple(exempt)
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempted = parameter.ndim <= 1 or any(fnmatchcase(name, pattern) for pattern in exempt)
            spare = exempted and not isinstance(config, Sgd)
            (spared if spare else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    arguments = config.model_dump(exclude={"name"})
    small = sum(parameter.numel() for parameter in module.parameters()) <= MOST_AT_ONCE
    fast: dict[str, Any] = {"fused": True} if fused else {"foreach": True} if small else {}
    # What timm would make of these names too, without the second that its import takes.
    if isinstance(config, Sgd):
        return uncompiled_optimizer(torch.optim.SGD)(groups, **arguments, **fast)
    if isinstance(config, AdamW):
        return uncompiled_optimizer(torch.optim.AdamW)(groups, **arguments, **fast)
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    # What an optimizer itself draws (Kron) is then in its state, and the same on all processes.
    known = _known_arguments(config)
    arguments |= {"deterministic": True} if "deterministic" in known else {}
    # The recipe's own choice between torch's ways of stepping goes first.
    own = {"fused", "foreach", "differentiable"} & arguments.keys()
    arguments |= {"fused": True} if fused and "fused" in known and not own else {}
    try:
        return create_optimizer_v2(groups, opt=config.name, **arguments)
    except Exception as error:  # optimizers raise anything at arguments that they do not like
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"optimizer: {config.name} cannot be built: {reason}") from None


def hyper_parameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """What each group of an optimizer is stepped with, defaults of libraries too, as plain JSON data.

    The learning rate is left out, for the schedule sets it; ``params`` is how many tensors the group holds.
    """

    def plain(value: object) -> object:
        return value.tolist() if isinstance(value, torch.Tensor) else str(value)

    groups = [group | {"params": len(group["params"])} for group in optimizer.param_groups]
    kept = [{key: value for key, value in group.items() if key != "lr"} for group in groups]
    found: list[dict[str, Any]] = json.loads(json.dumps(kept, default=plain))
    return found


def check_optimizer(config: Optimizer) -> None:
    """Try an optimizer on a network of one layer.

    Raises:
        UserError: timm has no such optimizer, it cannot be used here, or it does not take these arguments.
    """
    build_optimizer(config, nn.Linear(2, 2))


def _known_arguments(config: Optimizer) -> set[str]:
    """The arguments that the optimizer takes; those of the recipe are among them."""
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    names = [str(name) for name in list_optimizers()]
    if config.name not in names:
        raise UserError(f"optimizer.name: timm has no {config.name!r}; {nearest(config.name, names)}")
    if get_optimizer_info(config.name).second_order:
        raise UserError(f"optimizer.name: {config.name!r} needs second derivatives, which are not computed here")
    try:
        parameters = inspect.signature(get_optimizer_class(config.name, bind_defaults=False)).parameters
    except (ImportError, AssertionError) as error:
        raise UserError(f"optimizer.name: {config.name!r} cannot be used here: {error}") from None
    known = {*parameters} - {"params", "maximize"}  # what is maximised here is no loss
    for key, value in (config.model_extra or {}).items():
        if key not in known:
            raise UserError(f"optimizer.{key}: {config.name} has no argument {key!r}; {nearest(key, [*known])}")
        if wrong := _misfit(key, value, parameters[key].default):
            raise UserError(f"optimizer.{key}: {json.dumps(value)} is not valid; {wrong}")
    return known


def _misfit(key: str, value: Any, default: object) -> str | None:  # noqa: ANN401
    """Say what would be right in place of an argument that is of another kind than its default, or out of range."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "expected true or false"
    parts = value if isinstance(value, list) else [value]
    if isinstance(default, tuple) and (not isinstance(value, list) or len(value) != len(default)):
        return f"expected a list of {len(default)} numbers"
    is_number = isinstance(default, int | float | tuple) or key in SHARES
    if is_number and not all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts):
        return "expected a number"
    if key in SHARES and not all(0 <= part < 1 for part in parts):
        return "input should be at least 0 and less than 1"
    return None


def total_epochs(recipe: Recipe) -> int:
    """The epochs that a run really lasts."""
    return recipe.total_epochs


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of an optimizer step: of so many ``steps`` in an epoch, both counted from 0."""
    base, schedule, warmup = recipe.optimizer.lr, recipe.schedule, recipe.schedule.warmup
    if warmup is not None and warmup.name == "absolute" and epoch < warmup.epochs:
        return absolute_warmup_lr(epoch, base, warmup.epochs, warmup.lr)
    shift = warmup.epochs if warmup is not None and warmup.name == "ratio" and warmup.extends else 0
    if schedule.name == "step":
        drops = schedule.drops or every_to_drops(schedule.every or recipe.epochs, recipe.epochs)
        rate = step_lr(epoch, base, [drop + shift for drop in drops], schedule.ratio)
    elif schedule.name == "cosine":
        since = max(epoch - shift, 0)
        if schedule.restart_every is not None and since < recipe.epochs:
            rate = cosine_lr(since % schedule.restart_every, base, schedule.restart_every, schedule.min_lr)
        else:
            rate = cosine_lr(since, base, recipe.epochs, schedule.min_lr)
    else:
        rate = base
    if warmup is not None and warmup.name == "ratio":
        rate *= ratio_warmup_factor(epoch, warmup.epochs, warmup.start)
    elif warmup is not None and warmup.name == "stepwise":
        rate *= stepwise_warmup_factor(epoch * steps + step, warmup.epochs * steps)
    return rate
