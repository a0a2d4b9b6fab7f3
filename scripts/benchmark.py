"""The benchmark of every term: tunes KD on held-out images, then trains, measures and tabulates `cifar10-laptop`.

Stops after the tuning when the page's run `kd-tuned` has other settings than those that were best.
"""

import csv
import subprocess
import sys
from pathlib import Path

from distillery.experiment import load_experiments

TUNING, BENCHMARK, TUNED = "cifar10-laptop-tuning", "cifar10-laptop", "kd-tuned"
CONFIG, RESULTS = Path("config"), Path("results")


def make(experiment: str) -> None:
    """All of an experiment; what is there is kept.

    Raises:
        SystemExit: a job failed.
    """
    done = subprocess.run(
        ["snakemake", "--cores", "all", "--keep-going", f"results/tables/{experiment}.md"], check=False
    )
    if done.returncode:
        raise SystemExit(done.returncode)


def held_out_top1(run: str) -> float:
    """Of a run of the tuning, in %, after the last epoch."""
    path = RESULTS / TUNING / run / "seed0/history.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["val_top1"])


def main() -> None:
    """Tune, then run the benchmark."""
    make(TUNING)
    experiments = load_experiments(CONFIG)
    grid = experiments[TUNING]
    scores = {run: held_out_top1(run) for run in grid.config.runs if run in grid.recipes}
    for run, top1 in sorted(scores.items(), key=lambda score: -score[1]):
        print(f"{run}: {top1:.2f} % of the held-out images")
    best = max(scores, key=lambda run: scores[run])
    objective = grid.config.runs[best].objective
    if experiments[BENCHMARK].config.runs[TUNED].objective != objective:
        sys.exit(
            f"{CONFIG / BENCHMARK}.yaml: {BENCHMARK}.runs.{TUNED}.objective: {best} of {TUNING} was best; write "
            f"{objective.model_dump(exclude_unset=True, exclude_none=True)}, and call this again"
        )
    make(BENCHMARK)


if __name__ == "__main__":
    main()
