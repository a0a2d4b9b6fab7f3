"""Learning-rate schedules as pure functions of the epoch or the step, all from 0.

Three give a rate (step, cosine, absolute warm-up), two a factor on one (ratio and stepwise warm-up). What the systems
of the literature do is composed from them:

- MGD: step_lr x ratio_warmup_factor, with the drops, and the run, moved back by the warm-up's epochs.
- BAKE on ImageNet: cosine_lr x ratio_warmup_factor, nothing moved.
- BAKE on small images: step_lr with drops at E/2 + 1 and 3E/4 + 1. Its code applies the rule of epoch e only after
  epoch e, so every drop comes an epoch late: 101 and 151 of 200.
- USI: absolute_warmup_lr, then cosine_lr at the same epoch, not counted from the warm-up's end; cool-down epochs follow
  the cosine's end at its minimum.
- Label-smoothed KD: step_lr every 30 (teachers) or 80 (students) epochs; on ImageNet x stepwise_warmup_factor.
"""

import math
from collections.abc import Sequence


def step_lr(epoch: int, base_lr: float, drops: Sequence[int], ratio: float = 0.1) -> float:
    """``base_lr`` times ``ratio`` for each of ``drops`` that has come; a drop at epoch e holds from e on."""
    return base_lr * ratio ** sum(epoch >= drop for drop in drops)


def every_to_drops(every: int, epochs: int) -> list[int]:
    """The drops of a rate that falls every so many epochs of a run: its multiples below ``epochs``."""
    return list(range(every, epochs, every))


def cosine_lr(epoch: int, base_lr: float, epochs: int, min_lr: float = 0.0) -> float:
    """Half a cosine from ``base_lr`` at epoch 0 to ``min_lr`` at ``epochs``, and ``min_lr`` ever after."""
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (base_lr - min_lr) * (1 + math.cos(math.pi * epoch / epochs))


def ratio_warmup_factor(epoch: int, warmup_epochs: int, start: float = 0.1) -> float:
    """Linear from ``start`` at epoch 0 to 1 at ``warmup_epochs``, then 1."""
    if epoch >= warmup_epochs:
        return 1.0
    done = epoch / warmup_epochs
    return start * (1 - done) + done


def absolute_warmup_lr(epoch: int, base_lr: float, warmup_epochs: int, warmup_lr: float) -> float:
    """Linear from ``warmup_lr`` at epoch 0 to ``base_lr`` at ``warmup_epochs``, then ``base_lr``."""
    if epoch >= warmup_epochs:
        return base_lr
    return warmup_lr + epoch * (base_lr - warmup_lr) / warmup_epochs


def stepwise_warmup_factor(step: int, warmup_steps: int) -> float:
    """``(step + 1) / warmup_steps`` up to 1: the very first step already moves. Steps count from the run's start."""
    return min((step + 1) / warmup_steps, 1.0)
