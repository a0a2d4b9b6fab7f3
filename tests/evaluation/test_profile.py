"""Costs against hand counts, and the profile of a finished run."""

import json
import time

import pytest
import torch
from torch import nn

from distillery.errors import UserError
from distillery.evaluation.profile import count_macs, count_parameters, measure_latency, measure_throughput, profile_run
from distillery.experiment import load_experiment
from distillery.models import create_model
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

CPU = torch.device("cpu")


def cifar_resnet_macs(blocks, classes):
    """Counted by hand at 32 x 32: each 3 x 3 convolution is pixels x 9 x channels in x channels out."""
    stem = 32 * 32 * 9 * 3 * 16
    first = 2 * blocks * 32 * 32 * 9 * 16 * 16
    second = 16 * 16 * 9 * (16 * 32 + (2 * blocks - 1) * 32 * 32)
    third = 8 * 8 * 9 * (32 * 64 + (2 * blocks - 1) * 64 * 64)
    return stem + first + second + third + 64 * classes


@pytest.mark.parametrize(("name", "blocks"), [("cifar_resnet8", 1), ("cifar_resnet20", 3), ("cifar_resnet56", 9)])
def test_operations_of_the_cifar_networks(name, blocks):
    assert count_macs(create_model(name, 10).eval(), 32) == cifar_resnet_macs(blocks, 10)
    assert round(cifar_resnet_macs(3, 10) / 1e6, 1) == 40.6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "billions", "millions"),
    [
        ("torchvision:resnet50", 224, 4.09, 25.557),
        ("torchvision:mobilenet_v2", 224, 0.30, 3.505),
        ("torchvision:vit_b_16", 224, 17.56, 86.568),
        ("vit_small_patch16_224", 224, 4.60, 22.051),
        ("torchvision:swin_t", 224, 4.49, 28.288),
    ],
)
def test_operations_of_published_networks(name, size, billions, millions):
    network = create_model(name, 1000).eval()
    assert round(count_macs(network, size) / 1e9, 2) == billions
    assert round(count_parameters(network) / 1e6, 3) == millions


def test_attention_is_counted_even_where_it_is_fused():
    """Per head and image: tokens x tokens x width, for scores and for values; then four square projections."""
    tokens, width = 16, 8

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.MultiheadAttention(width, 2, batch_first=True)

        def forward(self, images):
            sequence = images[:, :1].reshape(1, tokens, 1).expand(1, tokens, width)
            return self.inner(sequence, sequence, sequence, need_weights=False)[0]

    expected = 4 * tokens * width * width + 2 * tokens * tokens * width
    assert count_macs(Attention().eval(), 4) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_weights_used_twice_count_once():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    assert count_parameters(network) == 9 + 3 + 3


class Sleeper(nn.Module):
    """Takes a known time, and longer at first, as libraries do that tune themselves."""

    def __init__(self, seconds):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds, self.passes, self.batches = seconds, 0, []

    def forward(self, images):
        self.passes += 1
        self.batches.append(len(images))
        time.sleep(self.seconds * len(images) + (0.1 if self.passes <= 3 else 0))
        return images


@pytest.mark.slow
def test_times_are_medians_after_a_warm_up(monkeypatch):
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.0)
    network = Sleeper(0.01)
    assert measure_latency(network, 4, CPU) == pytest.approx(0.01, rel=0.5)
    assert network.passes == 3 + 5
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.1)
    assert measure_latency(network, 4, CPU) == pytest.approx(0.01, rel=0.5)
    assert network.passes > 8 + 3 + 5
    batch, throughput = measure_throughput(network, 4, CPU, latency=0.01)
    assert batch == 32
    assert throughput == pytest.approx(100, rel=0.5)


def test_a_gpu_is_timed_with_cudnn_choosing_its_kernels(monkeypatch):
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    seen = set()

    class Seeing(Sleeper):
        def forward(self, images):
            seen.add((torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark))
            return super().forward(images)

    measure_latency(Seeing(0.0), 4, torch.device("cuda"))
    assert seen == {(True, True)}


def test_slow_networks_get_smaller_batches(monkeypatch):
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.0)
    network = Sleeper(0.0)
    assert measure_throughput(network, 4, CPU, latency=0.2)[0] == 8
    assert measure_throughput(network, 4, CPU, latency=10.0)[0] == 1


def test_a_batch_too_large_for_the_gpu_is_halved(monkeypatch):
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.0)

    class Small(Sleeper):
        def forward(self, images):
            if len(images) > 8:
                raise torch.cuda.OutOfMemoryError
            return super().forward(images)

    network = Small(0.0)
    assert measure_throughput(network, 4, CPU, latency=0.0)[0] == 8
    assert set(network.batches) == {8}


@pytest.mark.slow
def test_a_finished_run_is_profiled(workplace):
    make_run(Job(load_experiment(workplace.experiment), "small", 0, workplace.results, Machine(workers=0, threads=1)))
    torch.set_num_threads(1)
    profile = profile_run(load_experiment(workplace.experiment), "small", workplace.results)
    folder = workplace.results / "tiny" / "small"
    written = json.loads((folder / "profile.json").read_text())
    assert written.pop("seal")
    assert written == profile
    assert profile["input"] == [3, 8, 8]
    assert profile["params"] == count_parameters(create_model("cifar_resnet8", 3))
    assert profile["size_bytes"] == (folder / "seed0" / "weights.safetensors").stat().st_size
    assert profile["macs"] == count_macs(create_model("cifar_resnet8", 3).eval(), 8)
    assert 0 < profile["latency_ms"] < 1000
    assert profile["throughput"] > 10
    assert profile["cpu_throughput"] == profile["throughput"]
    assert profile["gpu_throughput"] is None
    assert (profile["cpu"], profile["cpu_threads"]) == (profile["device"], profile["threads"])
    assert profile["throughput_batch"] == 32
    assert profile["device"]
    assert profile["threads"] == (None if torch.cuda.is_available() else 1)
    assert profile["digest"] == load_experiment(workplace.experiment).spec("small").digest


def test_a_run_that_was_not_made_is_one_line(workplace):
    with pytest.raises(UserError, match=r"small/seed0/run\.json: missing; first make it with: distillery train"):
        profile_run(load_experiment(workplace.experiment), "small", workplace.results)
