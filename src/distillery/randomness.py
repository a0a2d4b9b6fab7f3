"""Addressed randomness: every draw is a pure function of its address, never of what was drawn before.

An address is (seed, stream, *position): the run's seed, the name of the purpose, and where in the run the draw is made
(epoch, sample id, step, rank ...). Workers, restarts and resume positions therefore cannot change a result, and no
generator state has to be saved.
"""

import random
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


def address_key(seed: int, stream: str, *position: int) -> int:
    """Hash an address to an integer in [0, 2**63), the widest range that numpy, torch and Python's ``random`` share."""
    text = ":".join([str(seed), stream, *map(str, position)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def addressed_bits(count: int, seed: int, stream: str, *position: int) -> npt.NDArray[np.uint64]:
    """``count`` random 64-bit words of an address.

    Counter-based Philox words are specified bit for bit, unlike numpy's and torch's higher-level draws, whose streams
    may change between releases.
    """
    return np.random.Philox(key=address_key(seed, stream, *position)).random_raw(count)


def addressed_permutation(count: int, seed: int, stream: str, *position: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of ``range(count)``, shape ``(count,)``, fixed by its address."""
    # Each number rides in the low bits of a random word: one plain sort, twice as fast as argsort, and never a tie.
    low = np.uint64((1 << max(count - 1, 0).bit_length()) - 1)
    words = (addressed_bits(count, seed, stream, *position) & ~low) | np.arange(count, dtype=np.uint64)
    words.sort()
    return (words & low).astype(np.int64)


def seed_generators(seed: int, stream: str, *position: int) -> None:
    """Seed Python's, numpy's and torch's global generators from an address.

    For library code (transforms, dropout) that only draws from global state: call it right before that code runs.
    """
    import torch

    key = address_key(seed, stream, *position)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.manual_seed(key)
