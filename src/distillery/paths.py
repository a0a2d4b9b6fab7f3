"""Where everything lies under the results folder."""

import errno
import os
import stat
from pathlib import Path

# The usual one; commands take another by --results.
RESULTS = Path("results")
# Where a rehearsal works: its own results, logs and generated images lie below.
REHEARSAL = RESULTS / "rehearsal"

# Through which processes that read images hand on their batches.
SHARED_MEMORY = Path("/dev/shm")


def regular(path: Path) -> Path:
    """The path, for opening: a pipe would be waited for, and a device has no end.

    Raises:
        OSError: it is neither a file nor a folder, or is not there.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return path


def cache_folder() -> Path:
    """What can be made again at any time, and may be removed at any time: the user's own."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distillery"


def dataset_folder(results: Path, dataset: str) -> Path:
    """Arrow shards and manifest.json of a prepared data set."""
    return results / "datasets" / dataset


def run_folder(results: Path, experiment: str, run: str, seed: int) -> Path:
    """weights.safetensors, history.csv, run.json, metrics.json and tensorboard/ of one trained or imported network."""
    return results / experiment / run / f"seed{seed}"


def bank_folder(results: Path, experiment: str, teacher: str, seed: int, address: str) -> Path:
    """A teacher's stored answers: bank.json, and a file an epoch or a view."""
    return run_folder(results, experiment, teacher, seed) / "bank" / address


def profile_path(results: Path, experiment: str, run: str) -> Path:
    """profile.json of a run: one for all its seeds, which share the architecture."""
    return results / experiment / run / "profile.json"


def table_folder(results: Path) -> Path:
    """<experiment>.md, .tex, .csv and .html, and a folder <experiment>/ with each table alone."""
    return results / "tables"


def table_seal(results: Path, experiment: str, table: str | None = None) -> Path:
    """What the files of a table, or of the whole experiment, were when they were written, and what they were made from.

    No table can have the second's name.
    """
    return table_folder(results) / experiment / f"{table or '_experiment'}.json"


def records_list(results: Path, experiment: str) -> Path:
    """Which records of an experiment were kept, and what they were: in copies that need no weights and no images."""
    return results / experiment / "records.json"


def figure_folder(results: Path, experiment: str) -> Path:
    """Figures of an experiment, as SVG and PNG."""
    return results / "figures" / experiment


def contact_sheet_path(results: Path, dataset: str) -> Path:
    """What a data set's images look like to a network."""
    return results / "figures" / "datasets" / f"{dataset}.png"


def work_folder(results: Path, experiment: str, run: str, seed: int) -> Path:
    """Lock and checkpoints of a run that is not complete; removed when it is. Outside every declared output."""
    return results / "work" / experiment / run / f"seed{seed}"


def lock_path(results: Path, experiment: str, run: str, seed: int) -> Path:
    """Where a run says that it is being made, whatever its spec."""
    return work_folder(results, experiment, run, seed) / "lock"


def log_folder(results: Path, experiment: str, run: str, seed: int) -> Path:
    """What the workflow's jobs of a run have said: train.log or import.log, and evaluate.log."""
    return results.parent / "logs" / experiment / run / f"seed{seed}"


def diverged_folder(results: Path, experiment: str, run: str, seed: int) -> Path:
    """Curves of a run that diverged, kept beside its logs: Snakemake removes what a failed job has made."""
    return log_folder(results, experiment, run, seed) / "diverged"


def shipped(name: str) -> Path:
    """A file or folder of workflow/ or config/: in the package where a wheel was installed, else beside src/."""
    packaged = Path(__file__).parent / name
    return packaged if packaged.exists() else Path(__file__).parents[2] / name
