"""Make an experiment and its figures, show its tables, and say where to look next.

One demo at a time works in a checkout. Its lock is an open file that everything started here inherits as its standard
input, so it is held until the last of these processes has ended, even when the demo itself was killed.
"""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

LOCK = Path(".snakemake", "demo.lock")

WHERE_TO_LOOK = """
Where to look next
  these tables    results/tables/{0}.md; for browsers .html, for papers .tex, for programs .csv
  figures         results/figures/{0}/
  TensorBoard     .venv/bin/tensorboard --logdir results/{0}
  HTML report     .venv/bin/snakemake --config experiments={0} --report results/report.html
  one student     .venv/bin/snakemake --cores 1 results/{0}/RUN/seed0/metrics.json
  your own runs   add a line to config/{0}.yaml, then make demo: only what is new is made"""


def main(experiment: str = "digits", *options: str) -> int:
    """Make, with further options of Snakemake, and show an experiment; 0 if it is made."""
    os.chdir(Path(__file__).parents[1])
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another demo or what it started works in this folder; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        # A killed demo leaves its mark, and Snakemake's own locks. Whatever it started has ended, or we would wait.
        if lock.read():
            subprocess.run(["snakemake", "--unlock"], stdin=lock, capture_output=True)
        lock.write("working")
        lock.flush()
        code = make(experiment, options, lock)
        lock.truncate(0)
        if code == 0:
            command = [sys.executable, "scripts/versions.py", "record", experiment]
            recorded = subprocess.run(command, stdin=lock, capture_output=True, text=True)
            if recorded.returncode:
                print(f"DVC could not record {experiment}: {recorded.stderr.strip()}")
    if code == 0:
        print(f"\n{Path('results', 'tables', f'{experiment}.md').read_text(encoding='utf-8').strip()}")
        print(WHERE_TO_LOOK.format(experiment))
    return code


def make(experiment: str, options: Sequence[str], lock: TextIO) -> int:
    """Run Snakemake on all cores; a signal stops it and all that it started. Returns its exit code."""
    command = ["snakemake", "--cores", "all", *options, "--config", f"experiments={experiment}"]
    workflow = subprocess.Popen(command, stdin=lock, stderr=subprocess.STDOUT, process_group=0)
    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        signals.append(number)
        if workflow.poll() is None:
            os.killpg(workflow.pid, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    code = workflow.wait()
    if signals:
        print("Stopped. The next `make demo` continues from here.")
        return 128 + signals[0]
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
