"""What a run needs to go on after it was stopped."""

import shutil
from dataclasses import dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from distillery.atomic import replace_file
from distillery.errors import UserError
from distillery.paths import regular

# Stands before the checksum at a checkpoint's end.
SEAL = b"\nsha256:"


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
    alarms: list[dict[str, Any]] = field(default_factory=list)  # what was said, for run.json
    skipped: list[dict[str, Any]] = field(default_factory=list)  # steps that were left out, likewise
    skipped_in_row: int = 0


class CheckpointFolder:
    """The resume folder of one run: the newest state, the one before it, and the weights of the best epoch of each.

    Files appear whole or not at all. The best weights carry their epoch in the name, so that a checkpoint never meets
    the weights of an epoch it does not know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._best: int | None = None  # the best epoch of the newest sound state; None if there is none

    @property
    def path(self) -> Path:
        """The newest state."""
        return self.folder / "checkpoint.pt"

    @property
    def older_path(self) -> Path:
        """The state before it."""
        return self.folder / "checkpoint-older.pt"

    def best_path(self, epoch: int) -> Path:
        """The weights of the best epoch so far."""
        return self.folder / f"best-{epoch}.safetensors"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state, keep the one before it, then drop best weights that neither needs."""
        best = state["train_state"]["best_epoch"]
        # In memory first: torch's own writer answers a full disk with a fault of its own.
        content = BytesIO()
        torch.save(state, content)
        digest = sha256(content.getbuffer()).digest()
        # Torch's own checksums, part by part, are never looked at and leave gaps.
        content.write(SEAL + digest)
        with replace_file(self.path) as temporary:
            temporary.write_bytes(content.getbuffer())
            # A damaged file must not take the place of the sound one.
            if self._best is not None and self.path.exists():
                self.path.replace(self.older_path)
        keep = {self.best_path(best), self.best_path(best if self._best is None else self._best)}
        self._best = best
        for path in self.folder.glob("best-*.safetensors"):
            if path not in keep:
                path.unlink()

    def load(self) -> tuple[dict[str, Any], Path] | None:
        """Read the newest state that is whole, and say where it stood; None when there is none.

        Raises:
            UserError: a file is there and cannot be read, for a reason that may pass.
        """
        for path in (self.path, self.older_path):
            try:
                state = _read(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise UserError(
                    f"{path}: cannot be read: {error.strerror or error}; nothing was changed; mend that, or remove "
                    f"{self.folder} to train from the beginning"
                ) from None
            except Exception as error:  # torch raises anything from EOFError to UnpicklingError on a damaged file
                then = "the checkpoint before it, if there is one" if path == self.path else "the beginning"
                print(f"warning: {path}: damaged ({error or type(error).__name__}); going on from {then}", flush=True)
                continue
            if path == self.path:
                self._best = state["train_state"]["best_epoch"]
            return state, path
        return None

    def remove(self) -> None:
        """Delete the folder of a complete run, and those that its former configurations have left."""
        for folder in self.folder.parent.glob("*-*/"):
            shutil.rmtree(folder, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    """Read a state whose every byte is what was written."""
    content = regular(path).read_bytes()
    body, mark, digest = content[: -32 - len(SEAL)], content[-32 - len(SEAL) : -32], content[-32:]
    if mark != SEAL or sha256(body).digest() != digest:
        raise ValueError("its checksum is another")
    state: dict[str, Any] = torch.load(BytesIO(body), map_location="cpu", weights_only=True)
    return state
