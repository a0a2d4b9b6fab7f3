"""Weights in and out."""

import os

import pytest
import torch
from safetensors.torch import load_file
from tests.models.conftest import same
from torch import nn

from distillery.errors import UserError
from distillery.models.weights import load_weights, save_weights


def test_weights_come_back_as_they_were(donor, network, tmp_path):
    save_weights(donor, tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors").keys() == donor.state_dict().keys()
    assert not same(donor, network)
    load_weights(network, tmp_path / "w.safetensors")
    assert same(donor, network)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_equal_weights_give_equal_bytes(donor, tmp_path):
    save_weights(donor, tmp_path / "a")
    save_weights(donor.to(memory_format=torch.channels_last), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tied_weights_are_kept(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
            self.b = nn.Linear(3, 3)
            self.b.weight = self.a.weight

    save_weights(tied := Tied(), tmp_path / "w")
    load_weights(other := Tied(), tmp_path / "w")
    assert same(tied, other)


def test_the_file_may_be_read_by_whom_the_user_allows(donor, tmp_path):
    old = os.umask(0o022)
    try:
        save_weights(donor, tmp_path / "w")
    finally:
        os.umask(old)
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o644


def test_a_missing_or_damaged_file_is_one_line(donor, network, tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(UserError, match=r"w\.safetensors: no such file"):
        load_weights(network, path)
    save_weights(donor, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be read as safetensors: \w"):
        load_weights(network, path)
