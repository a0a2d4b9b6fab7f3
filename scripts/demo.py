"""Make an experiment and its figures, tell how it comes along, then show it and say where to look next.

Only one demo works in a checkout at a time. Its lock is an open file that everything started here inherits as standard
input, so the lock is held until the last of these processes has ended, even when the demo itself was killed.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from progress import Progress

ROOT = Path(__file__).parents[1]
LOCK = Path(".snakemake", "demo.lock")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(experiment: str = "digits") -> int:
    """Make and show an experiment; 0 if it is made."""
    os.chdir(ROOT)
    with one_at_a_time() as lock:
        if lock.read():
            remove_stale_locks()
        note(lock, str(os.getpid()))
        code = make(experiment, lock)
        note(lock, "")
        if code:
            return code
        record_versions(experiment, lock)
    show(experiment)
    return 0


# --- one at a time ---------------------------------------------------------------------------------------------------


@contextmanager
def one_at_a_time() -> Iterator[TextIO]:
    """Hold the checkout's lock. Text in the file was left by a demo that did not end in order."""
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.touch()
    with LOCK.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Another demo (process {LOCK.read_text()}) or what it started works in this folder; waiting for it.")
            sys.stdout.flush()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def note(lock: TextIO, text: str) -> None:
    """Write into the lock who works, or nothing when the work ended in order."""
    lock.seek(0)
    lock.truncate()
    lock.write(text)
    lock.flush()


def remove_stale_locks() -> None:
    """Remove Snakemake's own locks after a demo was killed. Nothing it started lives any more, or we would wait."""
    if any(Path(".snakemake", "locks").glob("*")):
        subprocess.run(["snakemake", "--unlock"], check=True, capture_output=True)


# --- making ----------------------------------------------------------------------------------------------------------


def make(experiment: str, lock: TextIO) -> int:
    """Run Snakemake on all cores; a signal stops it and all that it started. Returns its exit code."""
    workflow = subprocess.Popen(
        ["snakemake", "--cores", "all", "--config", f"experiments={experiment}"],
        stdin=lock,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        with suppress(ProcessLookupError):
            os.killpg(workflow.pid, number)

    for number in SIGNALS:
        signal.signal(number, stop)
    print(f"Making results/tables/{experiment}.md and its figures.", flush=True)
    progress = Progress()
    assert workflow.stdout is not None
    for line in workflow.stdout:
        progress.read(line.rstrip("\n"))
    code = workflow.wait()
    progress.end()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if signals:
        print("Stopped. The next `make demo` continues from here.")
        return 128 + signals[0]
    if code:
        progress.explain()
    return code


def record_versions(experiment: str, lock: TextIO) -> None:
    """Let DVC note what was made of what, for experiments that it knows."""
    if not Path("versions", experiment).is_dir():
        return
    command = [sys.executable, "scripts/versions.py", "record", experiment]
    recorded = subprocess.run(command, stdin=lock, capture_output=True, text=True)
    if recorded.returncode:
        print(f"DVC could not record {experiment}: {recorded.stderr.strip()}")


# --- showing ---------------------------------------------------------------------------------------------------------


def show(experiment: str) -> None:
    """Print the experiment and where to look next."""
    from distillery.experiment import load_experiment

    run, seed = list(load_experiment(Path("config", f"{experiment}.yaml")).members())[-1]
    table = Path("results", "tables", f"{experiment}.md")
    print()
    if sys.stdout.isatty():
        from rich.console import Console
        from terminal import print_experiment

        print_experiment(table, Console(highlight=False))
    else:
        print(table.read_text(encoding="utf-8").strip())
    print(f"""
Where to look next
  this experiment       {table}; for papers .tex, for programs .csv
  figures         results/figures/{experiment}/
  TensorBoard     .venv/bin/tensorboard --logdir results/{experiment}
  HTML report     .venv/bin/snakemake --config experiments={experiment} --report results/report.html
  one student     .venv/bin/snakemake --cores 1 results/{experiment}/{run}/seed{seed}/metrics.json
  your own runs   add a line to config/{experiment}.yaml, then make demo: only what is new is made""")


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
