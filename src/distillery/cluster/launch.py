"""torchrun, with the answers of one process: bad input ends with its one line and exit code 2, a saved stop with 85.

torchrun itself ends with a traceback of its own and exit code 1, whatever its processes said.

    python -m distillery.cluster.launch --standalone --nproc-per-node 2 -m distillery train config/digits.yaml resnet8
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from distillery.cluster.signals import STOPPED

# Names the file by which its processes tell the launcher that they have finished.
FINISHED = "DISTILLERY_FINISHED"


def main(arguments: list[str]) -> int:
    """Run torchrun with these arguments; the exit code of the first process that failed."""
    # Otherwise its warning that it set this stands before every log. It is --threads that decides.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # By default, processes are killed 30 seconds after a warning, though they may be validating or saving. Slurm's own
    # limit comes 300 seconds after it.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "240")
    with TemporaryDirectory() as folder:
        finished = Path(folder) / "finished"
        os.environ[FINISHED] = str(finished)
        try:
            return _run(arguments, finished)
        finally:
            del os.environ[FINISHED]


def note_finished() -> None:
    """Tell the launcher, if there is one, that this process has done all it had to do."""
    if FINISHED in os.environ:
        # A launcher that has ended, and its folder with it, need not be told.
        with suppress(OSError):
            Path(os.environ[FINISHED]).touch()


def _run(arguments: list[str], finished: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        run(parse_args(arguments))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in (2, STOPPED):
            print(f"distillery: process {rank} failed (exit code {failure.exitcode})", file=sys.stderr, flush=True)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException:
        # It passed the signal on and waited for its processes, which save themselves, or had taken their last step.
        return 0 if finished.exists() else STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
