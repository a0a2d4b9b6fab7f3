"""By what a run was made: code, interpreter, packages, devices. Never by whom, on which host, or in which folder."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "distillery", "torch", "torchvision", "timm", "lightning-fabric", "torchmetrics", "datasets", "pyarrow", "pillow",
    "numpy", "scipy", "ortools", "safetensors",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """What this process runs on, as plain JSON data.

    Keys: ``git`` (commit and dirty; None when the package does not come from a repository), ``python``, ``platform``,
    ``packages`` (versions; None for what is not installed), ``cuda``, ``cudnn``, ``gpus`` (names), ``cpu`` and
    ``threads`` (of torch).
    """
    import torch

    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "git": git_state(Path(__file__).parent),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda if gpus else None,
        "cudnn": torch.backends.cudnn.version() if gpus else None,  # type: ignore[no-untyped-call]
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit that the files of a folder come from, and whether tracked files of its repository differ from it.

    None if there is no git, no repository, no commit yet, or if the folder merely lies inside a repository that does
    not track it, as an installed package lies in another project.
    """
    if not _git(folder, "ls-files", "--", "."):
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": _git(folder, "status", "--porcelain", "--untracked-files=no") != ""}


def _git(folder: Path, *arguments: str) -> str | None:
    """What a git command prints; None if it fails. Takes no locks, because many runs may ask at once."""
    # A hook or an alias that started this process may have pointed git to another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's product name, where the system gives it."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
