"""Every benchmark, each in a process of its own, and one table of ratios.

    python benchmarks/run.py [--only PART ...] [--to FILE]

A ratio above 1 says that Distillery is better than what stands beside it. A part that fails is a row that says so; the
others go on, and the exit code is 1. Each script of this folder can also be run alone, and has more options then;
`terms.py` (what each term costs) and `scale.py` (a pretended cluster) take long and are only run so.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rows import Row, machine, read, table

PARTS = {
    "step": ("step.py",),
    "loop": ("loop.py",),
    "small": ("small.py",),
    "loading": ("loading.py", "--only", "bytes", "floats"),
    "preparing": ("preparing.py",),
    "starting": ("workflow.py", "--only", "starting"),
    "planning": ("workflow.py", "--only", "planning"),
    "objectives": ("objectives.py",),
    "originals": ("originals.py",),
}
# Longer than any part takes on a slow machine.
MOST_SECONDS = 1200


def run_part(part: str, folder: Path) -> list[Row]:
    """The rows of a part, also of one that ends early."""
    script, *options = PARTS[part]
    path = folder / f"{part}.jsonl"
    command = [sys.executable, str(Path(__file__).parent / script), *options, "--rows", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS)
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"not done after {MOST_SECONDS} s"
    return read(path) + ([Row(part, script, reason=reason[:200])] if reason else [])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--to", type=Path, metavar="FILE", help="write the table as Markdown, too")
    given = parser.parse_args()
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number, part in enumerate(given.only, 1):
            print(f"[{number}/{len(given.only)}] {part}", end=" ... ", file=sys.stderr, flush=True)
            before = time.monotonic()
            rows += run_part(part, Path(folder))
            failed = f", failed: {rows[-1].reason}" if rows and rows[-1].reason else ""
            print(f"{time.monotonic() - before:.0f} s{failed}", file=sys.stderr, flush=True)
    missed = sum(row.missed for row in rows)
    lost = sum(bool(row.reason) for row in rows)
    text = (
        f"{table(rows)}\n\n{len(rows)} rows, {missed} missed, {lost} not measured; above 1 Distillery is better. "
        f"{machine()}; {(time.monotonic() - began) / 60:.0f} minutes.\n"
    )
    print(text, end="")
    if given.to is not None:
        given.to.write_text(text)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
