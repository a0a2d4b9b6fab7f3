"""Addressed randomness: every draw is a pure function of its address, never of what was drawn before.

An address is (seed, stream, *position): the run's seed, the name of the purpose, and where in the run the draw is made
(epoch, sample id, step, rank ...). Workers, restarts and resume positions therefore cannot change a result, and no
generator state has to be saved.
"""

import random
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

# The Mersenne Twister's words of state, and how far ahead each looks.
_STATE, _AHEAD = 624, 397


def address_key(seed: int, stream: str, *position: int) -> int:
    """Hash an address to an integer in [0, 2**63), the widest range that numpy, torch and Python's ``random`` share."""
    text = ":".join([str(seed), stream, *map(str, position)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def address_keys(seed: int, stream: str, positions: Iterable[tuple[int, ...]]) -> npt.NDArray[np.uint64]:
    """``address_key`` of many positions in one stream, shape (positions,)."""
    begun = blake2b(f"{seed}:{stream}:".encode(), digest_size=8)
    digests = bytearray()
    for position in positions:
        whole = begun.copy()
        whole.update(":".join(map(str, position)).encode())
        digests += whole.digest()
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64) >> np.uint64(1)


def twister_words(keys: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint32]:
    """The first words that torch's generator draws when it is seeded by each key, shape (keys, count).

    Its algorithm is the Mersenne Twister of Matsumoto and Nishimura (1998) as they published it, done here for many
    keys at once. ``count`` is at most 226, where the recurrence first meets its own results.
    """
    assert 0 <= count < _STATE - _AHEAD
    first, ahead = [], []
    state = keys.astype(np.uint32)
    for number in range(_AHEAD + count):
        if number:
            state ^= state >> np.uint32(30)
            state *= np.uint32(1812433253)
            state += np.uint32(number)
        if number <= count:
            first.append(state.copy())
        if number >= _AHEAD:
            ahead.append(state.copy())
    words = np.empty((len(keys), count), dtype=np.uint32)
    for number in range(count):
        joined = (first[number] & np.uint32(0x80000000)) | (first[number + 1] & np.uint32(0x7FFFFFFF))
        word = ahead[number] ^ (joined >> np.uint32(1)) ^ (joined & np.uint32(1)) * np.uint32(0x9908B0DF)
        word ^= word >> np.uint32(11)
        word ^= (word << np.uint32(7)) & np.uint32(0x9D2C5680)
        word ^= (word << np.uint32(15)) & np.uint32(0xEFC60000)
        words[:, number] = word ^ (word >> np.uint32(18))
    return words


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
    words = addressed_bits(count, seed, stream, *position)
    words &= ~low
    words |= np.arange(count, dtype=np.uint64)
    words.sort()
    words &= low
    return words.view(np.int64)


def seed_generators(seed: int, stream: str, *position: int) -> None:
    """Seed Python's, numpy's and torch's global generators from an address.

    For library code (transforms, dropout) that only draws from global state: call it right before that code runs.
    """
    import torch

    key = address_key(seed, stream, *position)
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key)
    # As torch.manual_seed, less the kinds of devices that nothing here runs on: it looks up the callers for each,
    # which takes longer than a small network's layer. Of GPUs, only the process's own, which Fabric has made current.
    seed_gpu = _gpu_seeder()
    if seed_gpu is not None:
        seed_gpu(key)


@cache
def _gpu_seeder() -> Callable[[int], None] | None:
    """Asked once: torch asks the driver every time."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.manual_seed
    return torch.mps.manual_seed if torch.backends.mps.is_available() else None
