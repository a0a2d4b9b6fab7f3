"""What a run needs to go on after it was stopped."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distillery.atomic import replace_file


@dataclass
class TrainState:
    """Where a run stands: plain numbers, all of them in the checkpoint."""

    epoch: int = 0
    step: int = 0
    sums: list[dict[str, float]] = field(default_factory=list)  # those of each rank
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_top1: float = -1.0
    sessions: list[dict[str, Any]] = field(default_factory=list)


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
        keep = self.best_path(state["train_state"]["best_epoch"])
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
