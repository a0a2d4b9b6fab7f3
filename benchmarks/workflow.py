"""How long planning takes as an experiment grows, and what each command costs to start, in one run.

    python benchmarks/workflow.py [--runs 100,1000,5000] [--only planning|starting]

Half of the runs learn from one of ten teachers. Times are of the processor, so that other work on the machine counts
little. Snakemake's and torch's own start stand beside: nothing that uses them can be quicker.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tabulate import tabulate

ROOT = Path(__file__).parents[1]
SNAKEMAKE = (sys.executable, "-m", "snakemake")
DISTILLERY = (sys.executable, "-m", "distillery")


def experiment(runs: int) -> str:
    """An experiment of so many runs: ten teachers, and students alone or taught."""
    lines = [f"    teacher{t}: {{model: cifar_resnet20, recipe: digits, epochs: {30 + t}}}" for t in range(10)]
    for i in range(runs - 10):
        network = (
            f"model: cifar_resnet8, model_args: {{width: {8 + 8 * (i % 3)}}}, recipe: digits, epochs: {5 + i // 6}"
        )
        kd = f", teacher: teacher{i % 10}, objective: {{ce: {{}}, kd: {{temperature: {1 + i // 50}}}}}"
        lines.append(f"    run{i}: {{{network}{kd if i % 2 else ''}}}")
    rows = ", ".join(f"run{i}" for i in range(runs - 10))
    table = f"    all: {{rows: [{rows}], columns: [top1, nll, agreement, params]}}"
    head = f"many{runs}:\n  dataset: digits\n  seeds: [0]\n  runs:"
    return "\n".join([head, *lines, "  tables:", table, ""])


def spent(command: tuple[str, ...], folder: Path) -> list[float]:
    """Processor seconds, and the largest memory in MB, of a command that must succeed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"{' '.join(command)}: {said[-500:]}"
    return [usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3]


def planning(folder: Path, sizes: list[int]) -> list[list[Any]]:
    """Rows: an experiment checked, planned as a whole, and planned for one of its jobs, as each job on Slurm does."""
    rows = [["snakemake --version", "", *spent((*SNAKEMAKE, "--version"), folder), ""]]
    for size in sizes:
        page = folder / "config" / f"many{size}.yaml"
        page.write_text(experiment(size))
        dry = (*SNAKEMAKE, "-n", "-q", "--cores", "1")
        target = {1000: 12.0, 5000: 60.0}.get(size, "")
        rows += [
            ["distillery check, of new networks", size, *spent((*DISTILLERY, "check", str(page)), folder), ""],
            ["distillery check, again", size, *spent((*DISTILLERY, "check", str(page)), folder), 1.5],
            ["snakemake -n", size, *spent((*dry, f"results/tables/many{size}.md"), folder), target],
            ["of one job", size, *spent((*dry, f"results/many{size}/run1/seed0/metrics.json"), folder), ""],
        ]
        page.unlink()
    return rows


def starting(folder: Path) -> list[list[Any]]:
    """Rows: what one step of training, an evaluation, a profile and a check cost, beside importing torch."""
    (folder / "config" / "short.yaml").write_text(
        "short:\n  dataset: digits\n  seeds: [0]\n  runs:\n"
        "    one: {model: cifar_resnet8, recipe: digits, epochs: 1, labels: 50, images: labelled}\n"
        "  tables:\n    all: {rows: [one], columns: [top1]}\n"
    )
    page = "config/short.yaml"
    spent((*DISTILLERY, "prepare", "digits", "--workers", "1"), folder)
    (folder / "config" / "taken.yaml").write_text(
        "taken:\n  dataset: digits\n  runs:\n    one: {model: cifar_resnet8, preprocess: {size: 32}, "
        "weights: results/short/one/seed0/weights.safetensors}\n  tables:\n    all: {rows: [one], columns: [top1]}\n"
    )
    machine = ("--threads", "1", "--workers", "0")
    return [
        ["import torch", "", *spent((sys.executable, "-c", "import torch"), folder), ""],
        ["distillery check", "", *spent((*DISTILLERY, "check", page), folder), 1.5],
        [
            "distillery train, 50 images",
            "",
            *spent((*DISTILLERY, "train", page, "one", *machine), folder),
            3.0,
        ],
        [
            "distillery train, weights taken",
            "",
            *spent((*DISTILLERY, "train", "config/taken.yaml", "one"), folder),
            2.5,
        ],
        ["distillery evaluate", "", *spent((*DISTILLERY, "evaluate", page, "one", *machine), folder), 2.5],
        ["distillery profile", "", *spent((*DISTILLERY, "profile", page, "one", "--threads", "1"), folder), 2.5],
    ]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", default="100,1000", help="sizes of the experiments [%(default)s]")
    parser.add_argument("--only", choices=("planning", "starting"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        for part in ("config", "workflow", "src"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "data.dvc", folder)
        rows: list[list[Any]] = []
        if options.only != "starting":
            rows += planning(folder, [int(size) for size in options.runs.split(",")])
        if options.only != "planning":
            rows += starting(folder)
    headers = ["command", "runs", "processor s", "MB", "target s"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", ".2f", ".0f", ".1f")))


if __name__ == "__main__":
    main()
