"""Reference vectors, the three precisions in which every function must reproduce them, and groups of processes."""

import contextlib
import json
import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

FOLDER = Path(__file__).parents[1] / "golden"


@dataclass(frozen=True)
class Precision:
    """How the stored tensors go into a function, and how far the result may be from the stored one."""

    dtype: torch.dtype
    tolerance: float
    autocast: bool

    def context(self):
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def close(self, actual, expected, slack=1):
        """Compare by the norm of the difference, and in float64 also number by number."""
        actual, expected = torch.as_tensor(actual).detach().double(), torch.as_tensor(expected).double()
        assert actual.shape == expected.shape
        distance = (actual - expected).norm() / expected.norm().clamp_min(SMALL)
        limit = self.tolerance if self.dtype == torch.float64 else slack * self.tolerance
        assert distance <= limit, f"relative distance {distance:.2e} > {limit:.0e}"
        if self.dtype == torch.float64:
            scale = expected.abs().max().item()
            torch.testing.assert_close(actual, expected, rtol=self.tolerance, atol=1e-12 * max(scale, 1.0))


# Some stored values are zero up to rounding; below this norm a distance counts absolutely.
SMALL = 0.1

PRECISIONS = {
    "float64": Precision(torch.float64, 1e-9, autocast=False),
    # Autocast would round products to 8 bits; what stays within 3e-5 was computed in float32.
    "float32 under autocast": Precision(torch.float32, 3e-5, autocast=True),
    # Here the inputs themselves are rounded to 8 bits (relative error 2^-9) before the function sees them.
    "bfloat16 under autocast": Precision(torch.bfloat16, 3e-2, autocast=True),
}


@pytest.fixture(params=PRECISIONS.values(), ids=PRECISIONS)
def precision(request):
    return request.param


def finite_in_half_precision(loss, student):
    """See that a loss of numbers of 8 bits, under autocast, is computed in float32, and is finite as its gradient."""
    student = student.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad.isfinite().all()


class Vectors:
    """One reference file; floating arrays come as tensors of one dtype."""

    def __init__(self, name, dtype):
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
            self.arrays = dict(arrays)
        self.dtype = dtype
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, key):
        return self._tensor(key, self.dtype)

    def exact(self, key):
        """The expected value, unrounded."""
        return self._tensor(key, torch.float64)

    def leaf(self, key):
        return self[key].requires_grad_()

    def _tensor(self, key, dtype):
        tensor = torch.from_numpy(np.asarray(self.arrays[key]))
        return tensor.to(dtype) if tensor.is_floating_point() else tensor


@pytest.fixture
def vectors():
    """Load a reference file by name: ``vectors(name, dtype)``."""
    return lambda name, dtype=torch.float64: Vectors(name, dtype)


@pytest.fixture
def in_processes():
    """Run ``work(rank, *arguments)`` in a group of processes: ``in_processes(work, 4, *arguments)``."""

    def run(work, world_size, *arguments):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        # Forked, because spawned processes could not import a test module.
        mp.start_processes(_join, args=(work, world_size, port, arguments), nprocs=world_size, start_method="fork")

    return run


def _join(rank, work, world_size, port, arguments):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    try:
        work(rank, *arguments)
    finally:
        dist.destroy_process_group()
