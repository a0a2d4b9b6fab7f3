"""How long planning takes as an experiment grows, and what each command costs to start, in one run.

    python benchmarks/workflow.py [--runs 1000,5000] [--only planning|starting] [--rounds 3]

Half of the runs learn from one of ten teachers. Times are of the processor, so that other work on the machine counts
little; those of starting are medians of rounds through all commands. Beside them stand fixed limits, what a script of
the usual packages imports, and Snakemake's own start: nothing that uses it can be quicker.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import rows
from rows import Row, beside, within

from distillery.experiment import load_experiment

ROOT = Path(__file__).parents[1]
SNAKEMAKE = (sys.executable, "-m", "snakemake")
DISTILLERY = (sys.executable, "-m", "distillery")
DRY = ("-n", "-q", "--cores", "1")


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


# What a size is meant to take: seconds and MB of planning, and seconds of the tables.
LIMITS = {1000: (12.0, None), 5000: (60.0, 1000.0)}
TABLES = {5000: 10.0}


def planning(folder: Path, sizes: list[int]) -> Iterator[Row]:
    """An experiment checked, planned as a whole, and parsed by one of its jobs as on Slurm; its tables."""
    own = spent((*SNAKEMAKE, "--version"), folder)[0]
    for size in sizes:
        page = folder / "config" / f"many{size}.yaml"
        page.write_text(experiment(size))
        new, again = (spent((*DISTILLERY, "check", str(page)), folder)[0] for _ in range(2))
        yield Row("scale", f"check, {size:,} runs, again", again, "the first time", new, "CPU s", new / again)
        taken, what = spent((*SNAKEMAKE, *DRY, f"results/tables/many{size}.md"), folder), f"snakemake -n, {size:,} runs"
        for value, limit, unit in zip(taken, LIMITS.get(size, ()), ("CPU s", "MB"), strict=False):
            if limit:
                yield within("scale", what, value, limit, unit)
        job = f"train_student:experiment=many{size},run=run0,seed=0"
        parsing = ("--target-jobs", job, "--allowed-rules", "train_student", "--force", "--nolock", "--mode", "remote")
        seconds = spent((*SNAKEMAKE, *DRY, *parsing), folder)[0]
        yield within("scale", f"a Slurm job's own parse, {size:,} runs", seconds, 1.8, "CPU s")
        yield Row("scale", "the same", seconds, "snakemake --version", own, "CPU s", own / seconds)
        if size in TABLES:
            write_measurements(folder, page)
            seconds = spent((*DISTILLERY, "tabulate", str(page)), folder)[0]
            yield within("scale", f"tables of {size:,} runs", seconds, TABLES[size], "CPU s")
        page.unlink()


def write_measurements(folder: Path, page: Path) -> None:
    """What all runs of an experiment would have left for its tables."""
    experiment = load_experiment(page)
    for run in experiment.config.runs:
        place = folder / "results" / experiment.name / run
        digest, teacher = experiment.spec(run, 0).digest, experiment.teacher(run)
        metrics = {"digest": digest, "images": 360, "selection": "last", "top1": 90.0, "nll": 0.3}
        (place / "seed0").mkdir(parents=True)
        (place / "seed0/metrics.json").write_text(json.dumps(metrics | {"agreement": 95.0 if teacher else None}))
        packages = {"git": {"commit": "1a2b3c", "dirty": False}, "packages": {"distillery": "1", "torch": "2"}}
        (place / "seed0/run.json").write_text(json.dumps({"sessions": [{"provenance": packages}]}))
        (place / "profile.json").write_text(
            json.dumps({"digest": digest, "params": 1, "throughput_batch": 1, "device": "", "threads": 1})
        )


def starting(folder: Path, rounds: int) -> list[Row]:
    """One step of training, an evaluation, a profile and a check, beside what they may take, and imports."""
    (folder / "config" / "short.yaml").write_text(
        "short:\n  dataset: digits\n  seeds: [0]\n  runs:\n"
        "    one: {model: cifar_resnet8, recipe: digits, epochs: 1, labels: 50, images: labelled}\n"
        "  tables:\n    all: {rows: [one], columns: [top1]}\n"
    )
    page, taken = "config/short.yaml", "config/taken.yaml"
    (folder / taken).write_text(
        "taken:\n  dataset: digits\n  runs:\n    one: {model: cifar_resnet8, preprocess: {size: 32}, "
        "weights: results/short/one/seed0/weights.safetensors}\n  tables:\n    all: {rows: [one], columns: [top1]}\n"
    )
    machine, python = ("--threads", "1", "--workers", "0"), (sys.executable, "-c")
    usual = "import torch, torchvision, timm"
    commands = {
        "import torch": (*python, "import torch"),
        usual: (*python, usual),
        "check": (*DISTILLERY, "check", page),
        "train, one step": (*DISTILLERY, "train", page, "one", *machine),
        "train, weights taken": (*DISTILLERY, "train", taken, "one"),
        "evaluate": (*DISTILLERY, "evaluate", page, "one", *machine),
        "profile": (*DISTILLERY, "profile", page, "one", "--threads", "1"),
    }
    limits = {"check": 1.5, "train, one step": 3.0, "train, weights taken": 2.5, "evaluate": 2.5, "profile": 2.5}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    memory: dict[str, list[float]] = {name: [] for name in commands}
    first = {
        # With banks of embeddings, of the largest networks.
        "check, of shipped networks": spent((*DISTILLERY, "check", str(ROOT / "config/giants.yaml")), folder),
        "check, of new networks": spent(commands["check"], folder),
    }
    for _ in range(rounds):
        shutil.rmtree(folder / "results/short", ignore_errors=True)
        shutil.rmtree(folder / "results/taken", ignore_errors=True)
        for name, command in commands.items():
            for values, value in zip((seconds[name], memory[name]), spent(command, folder), strict=True):
                values.append(value)
    middle = {name: statistics.median(seconds[name]) for name in limits}
    middle |= {name: seconds for name, (seconds, _) in first.items()}
    found = [
        within("start-up", name, value, limits[name.partition(", of")[0]], "CPU s") for name, value in middle.items()
    ]
    largest = {"check": statistics.median(memory["check"])} | {
        name: megabytes for name, (_, megabytes) in first.items()
    }
    for name, value in largest.items():
        found.append(within("start-up", name, value, 200.0, "MB"))
    for name in limits:
        found += [beside("start-up", name, seconds, name, rival, unit="CPU s") for rival in ("import torch", usual)]
    return found


def main() -> None:
    """Print the tables."""
    parser = rows.parser(__doc__, rounds=3)
    parser.add_argument("--runs", default="1000,5000", help="sizes of the experiments [%(default)s]")
    parser.add_argument("--only", choices=("planning", "starting"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        for part in ("config", "workflow", "src"):
            shutil.copytree(ROOT / part, folder / part)
        shutil.copy(ROOT / "data.dvc", folder)
        spent((*DISTILLERY, "prepare", "digits", "--workers", "1"), folder)
        if options.only != "planning":
            rows.write(starting(folder, options.rounds), options.rows)
        if options.only != "starting":
            rows.write(planning(folder, [int(size) for size in options.runs.split(",")]), options.rows)


if __name__ == "__main__":
    main()
