"""What a run needs to go on after it was stopped, and how it hears that it must stop."""

import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from distillery.atomic import replace_file

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

    def install(self) -> None:
        """Catch the signals from now on."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._remember)

    def connect(self, fabric: Fabric) -> None:
        """Agree with the other processes of the run from now on, if there are any."""
        if fabric.world_size > 1:
            # On the CPU, whatever the devices are: to ask must not make them wait.
            self._others = dist.new_group(backend="gloo")

    def agreed(self) -> bool:
        """Whether to stop now. All processes of a run ask after every step, and all get the same answer.

        One that stopped a step before the others would leave them waiting for its gradients.
        """
        self._agreed = self._received
        if self._others is not None:
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
                dist.barrier(group=self._others)
            raise Stopped(self._agreed.name)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number)


@dataclass
class Progress:
    """Where a run stands: plain numbers, all of them in the checkpoint."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_top1: float = -1.0
    sittings: list[dict[str, Any]] = field(default_factory=list)


class CheckpointFolder:
    """The resume folder of one run: ``checkpoint.pt`` and, when the best epoch is kept, its weights.

    Files appear whole or not at all. The best weights carry their epoch in the name, so that a checkpoint never meets
    the weights of an epoch it does not know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def path(self) -> Path:
        """The newest state."""
        return self.folder / "checkpoint.pt"

    def best_path(self, epoch: int) -> Path:
        """The weights of the best epoch so far."""
        return self.folder / f"best-{epoch}.safetensors"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, then drop best weights that it no longer needs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.path) as temporary:
            torch.save(state, temporary)
        keep = self.best_path(state["progress"]["best_epoch"])
        for path in self.folder.glob("best-*.safetensors"):
            if path != keep:
                path.unlink()

    def load(self) -> dict[str, Any] | None:
        """Read the newest state; None when there is none or it cannot be read."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
            print(f"{self.path}: cannot be read ({type(error).__name__}); starting from the beginning", flush=True)
            return None
        return state

    def remove(self) -> None:
        """Delete the folder of a complete run."""
        shutil.rmtree(self.folder, ignore_errors=True)
