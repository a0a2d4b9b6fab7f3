"""Two networks of one kind with different weights, and how to compare them."""

import pytest
import torch

from distillery.models import create_model


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    pass


@pytest.fixture
def donor():
    torch.manual_seed(1)
    network = create_model("cifar_resnet8", 10)
    network.train()(torch.randn(8, 3, 8, 8))
    return network


@pytest.fixture
def network():
    torch.manual_seed(2)
    return create_model("cifar_resnet8", 10)


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
