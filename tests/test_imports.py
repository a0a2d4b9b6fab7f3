"""What is imported without its heavy neighbours is the same to the bit, and these are there for who asks."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from distillery.imports import uncompiled_optimizer, without


@pytest.mark.slow
def test_fabric_is_imported_without_the_compiler_which_is_there_for_who_asks():
    script = (
        "import sys\n"
        "from distillery.imports import import_fabric\n"
        "import_fabric()\n"
        "assert 'lightning_fabric' in sys.modules\n"
        "assert not {'torch._dynamo', 'torchmetrics', 'sympy'} & set(sys.modules)\n"
        "import torch._dynamo\n"
        "assert torch._dynamo.OptimizedModule and torch._dynamo.config"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_taps_of_a_small_network_are_planned_without_the_compiler():
    script = (
        "import sys\n"
        "from distillery.models import create_model\n"
        "from distillery.models.taps import plan_taps\n"
        "assert plan_taps(create_model('cifar_resnet20', 10), 32).features == 64\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("snakemake", "boto3"))), reason="not installed: a core installation")
def test_snakemake_starts_without_boto3_which_is_there_for_who_asks():
    script = (
        "import sys\n"
        "import snakemake.cli\n"
        "from snakemake.common import parse_uri\n"
        "assert parse_uri('/a/Snakefile').uri_path == '/a/Snakefile' and parse_uri('https://a/b').scheme == 'https'\n"
        "assert 'boto3' not in sys.modules and 'smart_open' in sys.modules\n"
        "import boto3"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.slow
def test_the_size_of_a_network_is_found_without_the_compiler():
    script = (
        "import sys\n"
        "from distillery.models.facts import Network, _bytes\n"
        "assert _bytes(Network('cifar_resnet8', 10), None, None) == 303108\n"
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_hidden_module_is_absent_for_a_while_and_one_that_is_there_stays():
    with without("colorsys_that_is_nowhere", "torch"):
        assert sys.modules["torch"] is torch
        with pytest.raises(ImportError):
            __import__("colorsys_that_is_nowhere")
    assert "colorsys_that_is_nowhere" not in sys.modules


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        (torch.optim.AdamW, {"betas": (0.9, 0.99)}),
    ],
)
def test_an_optimizer_without_the_compiler_takes_the_same_steps(optimizer, arguments):
    def stepped(kind):
        torch.manual_seed(0)
        network = nn.Linear(7, 5)
        steps = kind(network.parameters(), lr=0.1, **arguments)
        for number in range(6):
            network(torch.randn(3, 7)).square().sum().backward()
            steps.step()
            steps.zero_grad(set_to_none=True)
            if number == 2:
                state = steps.state_dict()
                steps = kind(network.parameters(), lr=0.1, **arguments)
                steps.load_state_dict(state)
        assert type(steps).__name__ == optimizer.__name__
        assert all(value.grad is None for value in network.parameters())
        return [value.detach() for value in network.parameters()]

    assert all(map(torch.equal, stepped(uncompiled_optimizer(optimizer)), stepped(optimizer)))
