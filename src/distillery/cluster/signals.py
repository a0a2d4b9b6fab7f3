"""How a run and its worker processes take signals; docs/cluster.md has the whole way of a signal in a table.

Light, so that a run can listen while everything else is still being imported.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The exit code of a run that was stopped and has saved its state; Snakemake or Slurm starts it again.
STOPPED = 85


class Stopped(Exception):
    """The run was asked to stop; raised where stopping is safe."""


class Interrupted(Exception):
    """A signal came while the run waited for data."""


class StopSignal:
    """Remembers SIGTERM and SIGUSR1 (a cluster's warnings) and SIGINT (Ctrl-C) until the loop asks."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._agreed: signal.Signals | None = None  # by all processes of the run
        self._process_group: Any = None
        self._waiting = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def install(self, *numbers: signal.Signals) -> None:
        """Catch these signals from now on, or all three."""
        for number in numbers or (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            previous = signal.signal(number, self._remember)
            self._previous_handlers.setdefault(number, previous)

    def remove(self) -> None:
        """Give the signals back to their previous handlers."""
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def connect(self, fabric: "Fabric") -> None:
        """Agree with the other processes of the run from now on, if there are any."""
        import torch.distributed as dist

        if fabric.world_size > 1:
            # On the CPU, whatever the devices are: asking must not make them wait.
            self._process_group = dist.new_group(backend="gloo")

    def should_save(self, due: bool = False) -> bool:
        """Whether to save now: to stop then, or because that is ``due`` in any process.

        All processes of a run ask before every step, and all get the same answer: one that stopped a step before the
        others would leave them waiting for its gradients, and what is saved is gathered from all.
        """
        self._agreed = self._received
        if self._process_group is not None:
            import torch
            import torch.distributed as dist

            highest = torch.tensor([self._received or 0, due])
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=self._process_group)
            number, due = highest.tolist()
            self._agreed = signal.Signals(number) if number else None
        return bool(due) or self._agreed is not None

    def check(self) -> None:
        """Raise Stopped if the last ``should_save`` met a signal, in every process once all have come here.

        A process that ends lets its launcher end the others, and one of them may still be saving.
        """
        if self._agreed is not None:
            if self._process_group is not None:
                import torch.distributed as dist

                dist.barrier(group=self._process_group)
            raise Stopped(self._agreed.name)

    def interrupting(self) -> "_Interrupting":
        """Let a signal end a wait in here by Interrupted, also one that has come before.

        Of several processes, each ends its own wait, and then all meet in ``should_save``.
        """
        return _Interrupting(self)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT == self._received
        self._received = signal.Signals(number)
        if again:
            end_children()
            os._exit(128 + number)
        if self._waiting:
            self._waiting = False
            raise Interrupted


class _Interrupting:
    """Entered in each step: a class, for a generator takes longer."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop

    def __enter__(self) -> None:
        self._stop._waiting = True
        if self._stop._received is not None:
            self._stop._waiting = False
            raise Interrupted

    def __exit__(self, *error: object) -> None:
        self._stop._waiting = False


# --- worker processes ------------------------------------------------------------------------------------------------


@contextmanager
def warnings_blocked() -> Iterator[None]:
    """Keep warnings to stop for later, and start processes that do not die of one before they have handlers."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def end_children() -> None:
    """Kill all worker processes, stopped and waiting ones too, which no other signal would end."""
    # Torch would call their end a fault.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        child.kill()


def die_with_parent() -> None:
    """Have the system kill this process when the one that made it has ended, however that ended (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def obey_parent_only(worker: int) -> None:
    """Let a loader's worker serve on when a signal reaches the whole process group: its parent has a step to finish.

    SIGTERM cannot be ignored, for that is how a parent that ends stops the workers it still has, and then waits for
    them. So a thread takes the signal and looks who has sent it.
    """
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none; workers there end with the group
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_signal_of, args=(os.getppid(),), daemon=True).start()


def _exit_on_signal_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def leave_interrupts_to_parent() -> None:
    """Let a spawned worker ignore Ctrl-C, and end with its parent however that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
