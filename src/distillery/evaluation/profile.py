"""What a network costs: parameters, operations, size on disk, and time on this machine."""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distillery.accelerator import default_device, gpu_name
from distillery.evaluation.restore import restore_run
from distillery.experiment import Experiment
from distillery.experiment.ledger import PROFILING
from distillery.imports import uncompiled
from distillery.paths import profile_path
from distillery.provenance import cpu_name
from distillery.results import write_sealed

# The batch for throughput: these, or fewer where a pass would take longer than PASS_SECONDS or not fit the memory.
LARGEST_BATCH = {"cpu": 32, "cuda": 256, "mps": 256}
PASS_SECONDS = 2.0

# Each measurement lasts this long, in so many passes at least and at most, after some that do not count.
MEASURE_SECONDS = 0.5
LEAST_PASSES, MOST_PASSES = 5, 100
WARM_UP_PASSES = 3


def profile_run(experiment: Experiment, run: str, results: Path, device: torch.device | None = None) -> dict[str, Any]:
    """Profile the network of a run's first seed on this machine, and write profile.json beside the seeds.

    Times are those of the network alone in float32, without decoding or normalising images, on as many CPU threads as
    torch is set to. ``latency_ms`` is the median time of one image; ``throughput`` is images a second by the median
    time of a batch of ``throughput_batch``. ``cpu_throughput`` is that of the CPU even where there is a GPU.

    Raises:
        UserError: the run was not made yet, is stale or damaged.
    """
    device = device or default_device()
    finished = restore_run(experiment, run, experiment.seeds(run)[0], results, device)
    size = finished.preprocess.size
    latency = measure_latency(finished.network, size, device)
    batch, throughput = measure_throughput(finished.network, size, device, latency)
    cpu_throughput = throughput if device.type == "cpu" else _cpu_throughput(finished.network, size)
    finished.network.to(device)
    profile = {
        "run": run,
        "digest": finished.record["digest"],
        "profiling": PROFILING,
        "input": [3, size, size],
        "params": count_parameters(finished.network),
        "macs": count_macs(finished.network, size),
        "size_bytes": finished.weights.stat().st_size,
        "latency_ms": round(1000 * latency, 3),
        "throughput": round(throughput, 1),
        "throughput_batch": batch,
        "device": device_name(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "gpu_throughput": round(throughput, 1) if device.type != "cpu" else None,
        "cpu_throughput": round(cpu_throughput, 1),
        "cpu": cpu_name(),
        "cpu_threads": torch.get_num_threads(),
    }
    write_sealed(profile_path(results, experiment.name, run), profile)
    return profile


def count_parameters(network: nn.Module) -> int:
    """Count the numbers that training adjusts; weights used twice count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: int) -> int:
    """Count the multiplications with addition for one image of ``size`` x ``size`` pixels.

    As in the field's tables: of convolutions, linear layers and other matrix products (attention's included), not of
    normalisation, activation, pooling and sums.
    """
    images = _images(network, 1, size)
    was_fast = torch.backends.mha.get_fastpath_enabled()
    # Fused attention hides its products from the counter, so it is taken apart.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            uncompiled(type(counter.mode).__torch_dispatch__)
            network(images)
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)
    return int(counter.get_total_flops()) // 2


def measure_latency(network: nn.Module, size: int, device: torch.device) -> float:
    """Median seconds from one image to its scores."""
    return _median_seconds(network, _images(network, 1, size), device)


def measure_throughput(network: nn.Module, size: int, device: torch.device, latency: float) -> tuple[int, float]:
    """Find a batch that this machine takes in good time; return it and the images a second."""
    batch = LARGEST_BATCH[device.type]
    while batch > 1 and device.type == "cpu" and batch * latency > PASS_SECONDS:
        batch //= 2
    while True:
        try:
            return batch, batch / _median_seconds(network, _images(network, batch, size), device)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2


def _cpu_throughput(network: nn.Module, size: int) -> float:
    cpu = torch.device("cpu")
    network.to(cpu)
    return measure_throughput(network, size, cpu, measure_latency(network, size, cpu))[1]


def device_name(device: torch.device) -> str:
    """The product name of a GPU or CPU."""
    return cpu_name() if device.type == "cpu" else gpu_name(device)


def _median_seconds(network: nn.Module, images: Tensor, device: torch.device) -> float:
    """Median time of a forward pass, each one waited for."""
    # CPU kernels are done when they return.
    waits: dict[str, Callable[[], None]] = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}
    synchronize = waits.get(device.type, lambda: None)
    # ``flags`` switches cuDNN off unless told otherwise.
    fast_convolutions = (
        torch.backends.cudnn.flags(enabled=True, benchmark=True) if device.type == "cuda" else nullcontext()
    )
    times: list[float] = []
    with torch.inference_mode(), fast_convolutions:
        for _ in range(WARM_UP_PASSES):
            network(images)
        synchronize()
        began = time.perf_counter()
        while len(times) < LEAST_PASSES or (len(times) < MOST_PASSES and time.perf_counter() - began < MEASURE_SECONDS):
            start = time.perf_counter()
            network(images)
            synchronize()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _images(network: nn.Module, batch: int, size: int) -> Tensor:
    """Random normalised images where the network is."""
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, size, size, generator=generator).to(parameter.device, parameter.dtype)
