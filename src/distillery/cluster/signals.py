"""How a run hears that it must stop. Light, so that it can listen while everything else is still being imported."""

import signal
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# The exit code of a run that was told to stop and saved; Snakemake or Slurm starts it again.
STOPPED = 85


class Stopped(Exception):
    """The run was told to stop; raised where stopping is safe."""


class StopSignal:
    """Remembers SIGTERM and SIGUSR1 (a cluster's warnings) and SIGINT (Ctrl-C) until the loop asks."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._agreed: signal.Signals | None = None
        self._others: Any = None  # the process group to agree with
        self._before: dict[signal.Signals, Any] = {}  # what was done about a signal until now

    def install(self, *numbers: signal.Signals) -> None:
        """Catch these signals from now on, or all three."""
        for number in numbers or (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            before = signal.signal(number, self._remember)
            self._before.setdefault(number, before)

    def remove(self) -> None:
        """Leave the signals to whoever had them before."""
        while self._before:
            signal.signal(*self._before.popitem())

    def connect(self, fabric: "Fabric") -> None:
        """Agree with the other processes of the run from now on, if there are any."""
        import torch.distributed as dist

        if fabric.world_size > 1:
            # On the CPU, whatever the devices are: to ask must not make them wait.
            self._others = dist.new_group(backend="gloo")

    def should_stop(self) -> bool:
        """Whether to stop now. All processes of a run ask after every step, and all get the same answer.

        One that stopped a step before the others would leave them waiting for its gradients.
        """
        self._agreed = self._received
        if self._others is not None:
            import torch
            import torch.distributed as dist

            heard = torch.tensor([self._received or 0])
            dist.all_reduce(heard, op=dist.ReduceOp.MAX, group=self._others)
            self._agreed = signal.Signals(int(heard)) if heard else None
        return self._agreed is not None

    def check(self) -> None:
        """Raise Stopped if it was agreed to stop, in every process once all are ready to.

        A process that ends lets its launcher end the others, and one of them may still be saving.
        """
        if self._agreed is not None:
            if self._others is not None:
                import torch.distributed as dist

                dist.barrier(group=self._others)
            raise Stopped(self._agreed.name)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)
