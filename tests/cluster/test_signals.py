"""A signal that reaches one process of several stops all of them after the same step."""

import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from distillery.cluster.signals import Interrupted, Stopped, StopSignal

pytestmark = pytest.mark.slow


def _process(rank, port, signalled, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    stop = StopSignal()
    stop.install()
    stop.connect(SimpleNamespace(world_size=3))
    with pytest.raises(Stopped, match="SIGTERM"):
        _steps(rank, stop, signalled, folder / f"{rank}")
    dist.destroy_process_group()


def _steps(rank, stop, signalled, note):
    for step in range(50):
        time.sleep(0.002 * rank)
        if step == signalled.get(rank):
            signal.raise_signal(signal.SIGTERM)
        stop.should_save()
        # Between asking and stopping, a further signal changes nothing.
        if rank == 2 and step == 3:
            signal.raise_signal(signal.SIGTERM)
        note.write_text(str(step))
        stop.check()


@pytest.mark.parametrize(("signalled", "last"), [({1: 2}, 2), ({0: 2, 1: 1}, 1), ({}, 4)], ids=["one", "two", "late"])
def test_all_stop_after_the_same_step(tmp_path, signalled, last):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.start_processes(_process, args=(port, signalled, tmp_path), nprocs=3, start_method="fork")
    assert {int((tmp_path / f"{rank}").read_text()) for rank in range(3)} == {last}


def test_listening_needs_no_torch():
    """So that a warning during torch's import, which takes seconds, is heard."""
    code = "import distillery.cli, distillery.cluster.signals, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_signal_ends_a_wait_for_data_and_nothing_else():
    stop = StopSignal()
    stop.install(signal.SIGUSR1)
    try:
        with pytest.raises(Interrupted), stop.interrupting():
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        with pytest.raises(Interrupted), stop.interrupting():
            pytest.fail("what has come before ends the next wait, too")
        assert stop.should_save(due=False)
    finally:
        stop.remove()


def test_a_second_interrupt_ends_at_once():
    code = (
        "import signal; from distillery.cluster.signals import StopSignal; stop = StopSignal(); stop.install();"
        "signal.raise_signal(signal.SIGINT); print('first', flush=True); signal.raise_signal(signal.SIGINT); print(2)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "first\n")
