"""What a checkpoint holds of a training, and how a training goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distillery.errors import UserError

if TYPE_CHECKING:
    from distillery.training.loop import Training


def state_of(training: Training) -> dict[str, Any]:
    """Everything that the next step depends on besides the spec; no generator state, for nothing draws from one."""
    scaler = getattr(training.fabric.strategy.precision, "scaler", None)
    return {
        "learner": training.bare.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "ema": None if training.ema is None else training.ema.module.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "train_state": vars(training.train_state),
    }


def restore(training: Training, state: dict[str, Any], path: Path) -> None:
    """Continue from a checkpoint's state.

    Raises:
        UserError: it is of another network, objective or optimizer.
    """
    try:
        _restore(training, state)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: does not fit this run ({reason}); remove {path.parent} to train from the beginning"
        ) from None


def _restore(training: Training, state: dict[str, Any]) -> None:
    training.bare.load_state_dict(state["learner"])
    for group, saved in zip(training.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
        # How a step is taken is no part of the state.
        saved |= {key: group[key] for key in ("fused", "foreach") if key in group}
    training.optimizer.load_state_dict(state["optimizer"])
    for parameter, kept in training.optimizer.state.items():
        for name, value in kept.items():
            # Fused steps want the memory format of the weights, which is the machine's choice, too.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if training.ema is not None:
        training.ema.module.load_state_dict(state["ema"])
    scaler = getattr(training.fabric.strategy.precision, "scaler", None)
    # There is none after a session in another precision.
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    vars(training.train_state).update(state["train_state"])
