"""Make a run as several real processes (gloo), forked from the tests' own: they need not import torch again."""

import os
import signal
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distillery.cluster.signals import Stopped
from distillery.training.metric_logger import MetricLogger
from distillery.training.run import make_run


def make_in_processes(job, world_size, event=lambda rank, step: None):
    """Make a run as so many processes; ``event`` happens in each after each of its steps."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.start_processes(_make, args=(job, world_size, port, event), nprocs=world_size, start_method="fork")


def _make(rank, job, world_size, port, event):
    torch.set_num_threads(1)
    facts = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    facts |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in facts.items()}
    original, taken = MetricLogger.step, []

    def step(self, *arguments):
        taken.append(1)
        original(self, *arguments)
        event(rank, len(taken))

    MetricLogger.step = step
    try:
        make_run(job)
    except Stopped:
        pass
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def warn_all_at(step):
    """Ask all processes to stop after a step."""
    return lambda rank, taken: signal.raise_signal(signal.SIGTERM) if taken == step else None


def kill_one_at(step):
    """Kill the second process; the others have saved every step but this one."""
    return lambda rank, taken: os.kill(os.getpid(), signal.SIGKILL) if (rank, taken) == (1, step) else None
