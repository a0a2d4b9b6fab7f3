"""Batch statistics over two real processes against one process that has the whole batch."""

import os
import subprocess
import sys

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from distillery.models import create_model
from distillery.models.sync_batchnorm import CPUSyncBatchNorm, convert_sync_batchnorm

# (module, shape of one image's feature, images of the first and of the second process)
CASES = {
    "2d": (lambda: nn.BatchNorm2d(4), (4, 3, 5), (3, 3)),
    "2d, unequal shares": (lambda: nn.BatchNorm2d(4), (4, 3, 5), (5, 2)),
    "2d, one process without images": (lambda: nn.BatchNorm2d(4), (4, 3, 5), (0, 4)),
    "2d, one image each on one pixel": (lambda: nn.BatchNorm2d(4), (4, 1, 1), (1, 1)),
    "1d": (lambda: nn.BatchNorm1d(6), (6,), (5, 2)),
    "3d": (lambda: nn.BatchNorm3d(2), (2, 2, 3, 2), (1, 2)),
    "without weight and bias": (lambda: nn.BatchNorm2d(4, affine=False), (4, 3, 3), (2, 3)),
    "cumulative average": (lambda: nn.BatchNorm2d(4, momentum=None), (4, 3, 3), (2, 3)),
    "without running statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (4, 3, 3), (2, 3)),
    "with an activation": (lambda: BatchNormAct2d(4, act_layer=nn.LeakyReLU), (4, 3, 3), (4, 3)),
}
STEPS = 2

WORKER = """
import sys, torch, torch.distributed as dist
from distillery.models.sync_batchnorm import convert_sync_batchnorm
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
results = {}
for name, (module, steps) in torch.load(f"{folder}/cases.pt", weights_only=False).items():
    module, results[name] = convert_sync_batchnorm(module, "cpu"), []
    for shares, loss_weights in steps:
        images = shares[rank].requires_grad_()
        module.zero_grad()
        output = module(images)
        (output * loss_weights[rank]).sum().backward()
        gradients = {key: value.grad for key, value in module.named_parameters()}
        results[name].append((output.detach(), images.grad, gradients))
    results[name].append({key: value.clone() for key, value in module.state_dict().items()})
    results[name].append(module.eval()(torch.ones_like(steps[0][0][1])).detach())
torch.save(results, f"{folder}/rank{rank}.pt")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def case_inputs():
    """Double precision, and a mean far from zero, which is where careless statistics lose their digits."""
    generator = torch.Generator().manual_seed(0)
    cases = {}
    for name, (make, shape, shares) in CASES.items():
        module = make().double()
        for parameter in module.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
        steps = []
        for _ in range(STEPS):
            images = 100 + torch.randn(sum(shares), *shape, generator=generator).double()
            loss_weights = torch.randn(sum(shares), *shape, generator=generator).double()
            steps.append((images.split(shares), loss_weights.split(shares)))
        cases[name] = (module, steps)
    return cases


@pytest.fixture(scope="module")
def two_processes(case_inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    torch.save(case_inputs, folder / "cases.pt")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(folder)], env=environment) for rank in (0, 1)
    ]
    try:
        assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_with_the_whole_batch(name, case_inputs, two_processes):
    module, steps = case_inputs[name]
    first, second = (results[name] for results in two_processes)
    for step, (shares, loss_weights) in enumerate(steps):
        images = torch.cat([share.detach() for share in shares]).requires_grad_()
        module.zero_grad()
        output = module(images)
        (output * torch.cat(loss_weights)).sum().backward()
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(torch.cat([first[step][0], second[step][0]]), output.detach(), **close)
        torch.testing.assert_close(torch.cat([first[step][1], second[step][1]]), images.grad, **close)
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(first[step][2][key] + second[step][2][key], parameter.grad, **close)
    for results in (first, second):
        torch.testing.assert_close(results[STEPS], dict(module.state_dict()), rtol=1e-9, atol=1e-9)
    # Without running statistics, evaluation too goes by the batch: then that of both processes.
    if module.running_mean is not None:
        torch.testing.assert_close(first[-1], module.eval()(torch.ones_like(steps[0][0][1])).detach())
        module.train()


def test_conversion_keeps_names_values_and_modes():
    network = create_model("cifar_resnet8", 10)
    network.layer1[0].bn1.eval()
    network.layer1[0].bn2.weight.requires_grad_(False)
    before, names = network.state_dict(), [name for name, _ in network.named_modules()]
    converted = convert_sync_batchnorm(network, "cpu")
    assert [name for name, _ in converted.named_modules()] == names
    assert {name: value.data_ptr() for name, value in converted.state_dict().items()} == {
        name: value.data_ptr() for name, value in before.items()
    }
    assert not converted.layer1[0].bn1.training
    assert not converted.layer1[0].bn2.weight.requires_grad
    kinds = {type(module) for module in converted.modules()}
    assert CPUSyncBatchNorm in kinds
    assert nn.BatchNorm2d not in kinds


def test_alone_it_is_an_ordinary_batch_normalisation():
    module = nn.BatchNorm2d(4)
    images = torch.randn(3, 4, 2, 2)
    expected = module(images)
    converted = convert_sync_batchnorm(nn.BatchNorm2d(4), "cpu")
    assert torch.equal(converted(images), expected)
    torch.testing.assert_close(converted.state_dict(), module.state_dict())


@pytest.mark.parametrize("name", ["cifar_resnet8", "densenet121"])
def test_gpus_get_torchs_own(name):
    """Only built: torch's module runs on GPUs alone."""
    network = create_model(name, 10)
    state = network.state_dict().keys()
    converted = convert_sync_batchnorm(network, "cuda")
    assert converted.state_dict().keys() == state
    kinds = [type(module) for module in converted.modules()]
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert not any(kind in (nn.BatchNorm2d, BatchNormAct2d) for kind in kinds)
