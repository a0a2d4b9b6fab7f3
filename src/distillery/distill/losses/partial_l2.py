"""The distance that MGD and Overhaul share: only what survives a rectifier may differ.

B batch, C channels, H W pixels.
"""

import math

import torch
from torch import Tensor

from distillery.accelerator import wide
from distillery.distill.precision import full_precision

# A channel whose pre-activations are negative with a probability below this has no usable mean of them.
RARELY_NEGATIVE = 0.001


def bn_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """The margin of each channel that a batch norm feeds: the mean of its negative values (Heo et al. 2019, eq. 4).

    A normalised channel is taken as normal with mean ``mu = bias`` and deviation ``sigma = |weight|``, so

        E[x | x < 0] = mu - sigma exp(-(mu / sigma)^2 / 2) / (sqrt(2 pi) Phi(-mu / sigma)),

    and ``-3 sigma`` where ``Phi(-mu / sigma) <= 0.001``. A channel of weight 0 is the constant ``mu``; its margin is
    the limit ``min(mu, 0)``.

    Args:
        weight: the batch norm's scale, (C,).
        bias: its shift, (C,).

    Returns:
        (1, C, 1, 1) float32, computed in float64. Never above zero.
    """
    sigma = wide(weight.detach()).abs()
    mu = wide(bias.detach())
    ratio = mu / sigma.where(sigma > 0, 1)
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    mean = mu - sigma * density / negative.clamp_min(RARELY_NEGATIVE)
    margin = torch.where(negative > RARELY_NEGATIVE, mean, -3 * sigma)
    margin = torch.where(sigma > 0, margin, mu.clamp_max(0))
    return margin.float().reshape(1, -1, 1, 1).to(weight.device)


def margin_relu(feature: Tensor, margin: Tensor) -> Tensor:
    """``max(feature, margin)``: a rectifier that cuts at each channel's margin, not at zero.

    A target of the student's pre-activation: positive answers are to be met, all others only to be below the margin.

    Args:
        feature: the teacher's pre-activation, (B, C, H, W); detached.
        margin: (1, C, 1, 1).
    """
    assert margin.shape == (1, feature.shape[1], 1, 1), f"margin {tuple(margin.shape)} of {tuple(feature.shape)}"
    return torch.maximum(feature.detach(), margin)


@full_precision
def partial_l2(source: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Sum over batch, channels and pixels of the squares that matter, a scalar (Heo et al. 2019, eq. 3 and 6).

    With ``tau = max(target, margin)`` the sum is of ``(source - tau)^2`` where ``source > tau`` or ``tau > 0``. A
    source below a target that is not positive costs nothing, for the next activation makes zeros of both. The choice of
    summands is not differentiated.

    Args:
        source: the student's side, (B, C, H, W); alone gets a gradient.
        target: the teacher's side, same shape.
        margin: (1, C, 1, 1).
    """
    tau = margin_relu(target, margin)
    counts = (source > tau) | (tau > 0)
    return torch.where(counts, source - tau, 0).square().sum()


def stage_weights(stages: int) -> list[float]:
    """The weights of a network's stages, ``1 / 2^(n-1-i)`` for i = 0 .. n-1: halved with each step from the end."""
    return [0.5 ** (stages - 1 - stage) for stage in range(stages)]
