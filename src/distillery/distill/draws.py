"""Draws inside terms, as functions of their address: the same on any device, in any micro-batch and after a resume.

B batch, K draws for each image.
"""

import torch
from torch import Tensor

from distillery.accelerator import wide
from distillery.randomness import address_key

# Odd factors of the hash.
FACTORS = (0x7FB5D329728EA185, 0x2545F4914F6CDD1D)


def image_keys(seed: int, stream: str, epoch: int, indices_B: Tensor) -> Tensor:
    """A key for each image in an epoch, int64 (B,)."""
    keys = [address_key(seed, stream, epoch, index) for index in indices_B.tolist()]
    return torch.tensor(keys, dtype=torch.long, device=indices_B.device)


def hashed_bits(keys_B: Tensor, value: Tensor, turn: int) -> Tensor:
    """31 bits of each value (B, K) under its key."""
    mixed = (keys_B[:, None] + turn) * FACTORS[1] + value
    for factor in FACTORS:
        mixed = (mixed ^ (mixed >> 29)) * factor
    return (mixed >> 32) & 0x7FFFFFFF


def uniform(keys_B: Tensor, count: int) -> Tensor:
    """``count`` numbers in [0, 1) for each key, float64 (B, K); on the CPU for keys on a device without it."""
    counter = torch.arange(count, device=keys_B.device).expand(len(keys_B), count)
    return wide(hashed_bits(keys_B, counter, 0)) / 2**31
