"""Draws are functions of their address."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distillery import randomness
from distillery.randomness import (
    address_key,
    address_keys,
    addressed_bits,
    addressed_permutation,
    seed_generators,
    twister_words,
)

SEEDS = st.integers(0, 2**31)
POSITIONS = st.lists(st.integers(0, 2**40), max_size=4)


def test_random_draws_of_an_address_are_frozen():
    assert address_key(0, "order", 0) == 7955589716765508323
    assert addressed_bits(2, 0, "order", 0).tolist() == [6934880323521598754, 17431582774753158237]
    assert addressed_permutation(6, 0, "order", 0).tolist() == [5, 0, 3, 4, 2, 1]


@given(SEEDS, POSITIONS)
def test_keys_are_positive_64_bit_numbers(seed, position):
    assert 0 <= address_key(seed, "x", *position) < 2**63


@given(SEEDS, st.integers(1, 300), st.integers(0, 9))
def test_a_permutation_holds_each_number_once_and_is_repeatable(seed, count, epoch):
    order = addressed_permutation(count, seed, "order", epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert (order == addressed_permutation(count, seed, "order", epoch)).all()


def test_seeds_streams_and_positions_give_independent_draws():
    orders = [
        addressed_permutation(50, *address).tolist() for address in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_neighbouring_positions_do_not_run_together():
    assert address_key(1, "a", 12) != address_key(11, "a", 2)
    assert address_key(0, "a", 1, 23) != address_key(0, "a", 12, 3)


def test_permutations_are_uniform():
    counts = np.zeros((4, 4))
    for epoch in range(4000):
        for place, item in enumerate(addressed_permutation(4, 0, "order", epoch)):
            counts[place, item] += 1
    assert abs(counts / 4000 - 0.25).max() < 0.03


def test_library_generators_follow_the_address_whatever_came_before():
    def draw():
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    seed_generators(3, "augment", 1, 2)
    first = draw()
    torch.rand(10)
    random.random()
    seed_generators(3, "augment", 1, 2)
    assert draw() == first
    seed_generators(3, "augment", 1, 3)
    assert draw() != first


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_of_the_process_follows_the_address_and_no_other(monkeypatch, device):
    seeded = []
    randomness._gpu_seeder.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "mps")
    for kind in ("cuda", "mps"):
        monkeypatch.setattr(getattr(torch, kind), "manual_seed", lambda key, kind=kind: seeded.append((kind, key)))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda key: pytest.fail("seeds the GPUs of others"))
    seed_generators(3, "forward", 1)
    randomness._gpu_seeder.cache_clear()
    assert seeded == [(device, address_key(3, "forward", 1))]


def test_keys_made_together_are_those_made_one_by_one():
    positions = [(0, 5, 1), (3, 2**40, 0), (12, 3, 4)]
    assert address_keys(7, "augment", positions).tolist() == [address_key(7, "augment", *each) for each in positions]
    assert address_keys(7, "augment", []).shape == (0,)


def test_the_first_words_of_many_keys_are_what_torch_draws():
    keys = address_keys(0, "augment", ((0, index, 0) for index in range(300)))
    words = twister_words(keys, 5)
    for key, (first, second, third, fourth, fifth) in zip(keys.tolist(), words.tolist(), strict=True):
        torch.manual_seed(key)
        assert int(torch.randint(9, ())) == first % 9
        assert float(torch.rand(())) == (second & 0xFFFFFF) / 2**24
        assert torch.randint(250, (2,)).tolist() == [third % 250, fourth % 250]
        assert int(torch.randint(2**27 + 1, ())) == fifth % (2**27 + 1)


def test_the_first_words_are_those_of_the_mersenne_twister():
    seeds = np.array([0, 1, 5489, 2**32 - 1, 2**40 + 1], dtype=np.uint64)
    words = twister_words(seeds, 226)
    assert words[2, 0] == 3499211612  # as C++ says of std::mt19937
    for seed, row in zip(seeds.tolist(), words, strict=True):
        bits = np.random.MT19937()
        np.random.RandomState(bits).seed(seed & 0xFFFFFFFF)
        assert row.tolist() == bits.random_raw(226).tolist()
