"""Optimizers and learning rates, as the recipe states them: nothing here is scaled by the number of devices."""

from collections.abc import Iterable

import torch
from torch import nn

from distillery.experiment.schema.recipe import AdamW, Recipe, Sgd
from distillery.training.schedules import (
    absolute_warmup_lr,
    cosine_lr,
    every_to_drops,
    ratio_warmup_factor,
    step_lr,
    stepwise_warmup_factor,
)


def build_optimizer(config: Sgd | AdamW, module: nn.Module, exempt: Iterable[str] = ()) -> torch.optim.Optimizer:
    """Build the recipe's optimizer over every trainable parameter of ``module``.

    SGD decays all weights, as the reference systems do. AdamW does not decay vectors (biases, norms) nor the parameters
    whose names are in ``exempt`` (a model's own ``no_weight_decay()``).
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if isinstance(config, Sgd):
        return torch.optim.SGD(
            [parameter for _, parameter in named],
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    exempt = frozenset(exempt)
    spared = [parameter for name, parameter in named if parameter.ndim <= 1 or name in exempt]
    decayed = [parameter for name, parameter in named if not (parameter.ndim <= 1 or name in exempt)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps
    )


def total_epochs(recipe: Recipe) -> int:
    """The epochs that a run really lasts: the recipe's, an extending warm-up's and a cosine's cool-down."""
    warmup = recipe.schedule.warmup
    extra = warmup.epochs if warmup is not None and warmup.name == "ratio" and warmup.extends else 0
    cooldown = recipe.schedule.cooldown if recipe.schedule.name == "cosine" else 0
    return recipe.epochs + extra + cooldown


def learning_rate(recipe: Recipe, epoch: int, step: int, steps: int) -> float:
    """The learning rate of one optimizer step.

    Args:
        recipe: states the base rate, the schedule and its warm-up.
        epoch: from 0.
        step: within the epoch, from 0.
        steps: optimizer steps in an epoch.
    """
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
