"""What the driver costs on a large cluster: Snakemake with our executor for Slurm, over jobs that only end.

    python benchmarks/scale.py [--runs 200] [--seeds 1] [--gpus 50] [--seconds 5]

Slurm's programs are stand-ins here: sbatch notes a job; squeue deals jobs to so many GPUs in the order of their
coming, lets each last a random time (exponential, of this mean), and writes empty results when one has ended. The
driver, its plan, its profile and its executor are the real ones. Half of the runs learn from one of ten teachers.
"""

import argparse
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tabulate import tabulate

from workflow import DISTILLERY, ROOT, SNAKEMAKE, experiment

SBATCH = """#!/bin/sh
exec 9>>"$SPOOL/lock"; flock 9
number=$(($(cat "$SPOOL/count") + 1)); echo $number >"$SPOOL/count"
target=$(printf %s "$*" | tr '\\n' ' ' | grep -o "target-jobs [^ ]*" | head -1)
echo "$number|$(date +%s.%N)|$target" >>"$SPOOL/jobs"
echo $number
"""
SQUEUE = f"""#!{sys.executable}
import heapq, os, pickle, random, re, time
from pathlib import Path
spool, project, now = Path(os.environ["SPOOL"]), Path(os.environ["PROJECT"]), time.time()
try:
    state = pickle.loads((spool / "state").read_bytes())
except OSError:
    state = {{"at": 0, "free": [0.0] * int(os.environ["GPUS"]), "jobs": {{}}, "busy": 0.0, "looks": [], "ended": 0}}
with (spool / "jobs").open() as file:
    file.seek(state["at"])
    lines = file.read().splitlines()
    state["at"] = file.tell()
for line in lines:
    number, submitted, target = line.split("|", 2)
    lasts = random.expovariate(1 / float(os.environ["SECONDS_A_JOB"]))
    start = max(float(submitted), heapq.heappop(state["free"]))
    heapq.heappush(state["free"], start + lasts)
    state["busy"] += lasts
    state["jobs"][number] = [start, start + lasts, target, False]
state["looks"].append(now)
for number, job in list(state["jobs"].items()):
    start, end, target, done = job
    if end > now:
        print(f"{{number}}|{{'RUNNING' if start <= now else 'PENDING'}}")
        continue
    if not done:
        job[3], state["ended"] = True, state["ended"] + 1
        rule, pairs = re.search(r"target-jobs '?(\\w+):([^' ]*)", target).groups()
        names = dict(pair.split("=") for pair in pairs.split(","))
        place = Path(names["experiment"], names["run"], "seed" + names["seed"])
        trains = rule.startswith("train")
        made = ["run.json", "weights.safetensors", "history.csv", "tensorboard/x"] if trains else ["metrics.json"]
        timing = Path("logs", place, ("train" if trains else rule) + ".benchmark.jsonl")
        for path in [timing, *(Path("results", place, name) for name in made)]:
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            (project / path).write_text("{{}}")
    if now - end < 300:
        print(f"{{number}}|COMPLETED")
    else:
        del state["jobs"][number]
(spool / "new").write_bytes(pickle.dumps(state))
os.replace(spool / "new", spool / "state")
"""


def project(folder: Path, runs: int, seeds: int) -> None:
    """A checkout with an experiment of so many runs, its data set prepared, and Slurm's programs beside it."""
    for part in ("config", "workflow", "src"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "data.dvc", folder)
    page = experiment(runs).replace(f"many{runs}:", "many:")
    (folder / "config" / "many.yaml").write_text(page.replace("seeds: [0]", f"seeds: {list(range(seeds))}"))
    subprocess.run((*DISTILLERY, "prepare", "digits", "--workers", "1"), cwd=folder, check=True, capture_output=True)
    spool, programs = folder / "spool", folder / "programs"
    spool.mkdir()
    programs.mkdir()
    (spool / "count").write_text("0")
    (spool / "jobs").touch()
    silent = dict.fromkeys(("sacct", "sacctmgr", "scancel", "scontrol", "sshare"), "#!/bin/sh\n")
    for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "sinfo": '#!/bin/sh\necho "gpu*"\n', **silent}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


def drive(folder: Path, gpus: int, seconds: float) -> list[float]:
    """Let the driver make all metrics; what the table says of it."""
    environment = os.environ | {
        "SPOOL": str(folder / "spool"),
        "PROJECT": str(folder),
        "GPUS": str(gpus),
        "SECONDS_A_JOB": str(seconds),
        "PATH": f"{folder / 'programs'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    profile = ("--profile", "workflow/profiles/slurm", "--jobs", str(gpus), "--latency-wait", "5")
    command = (*SNAKEMAKE, *profile, "--until", "evaluate", "--", "results/tables/many.md")
    began, first, planned = time.monotonic(), 0.0, 0.0
    with (folder / "said").open("w") as said:
        driver = psutil.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        spent, most = 0.0, 0.0
        while driver.poll() is None:
            time.sleep(1)
            try:
                spent, most = sum(driver.cpu_times()[:2]), max(most, driver.memory_info().rss / 1e6)
            except psutil.Error:
                break
            if not first and (folder / "spool" / "jobs").stat().st_size:
                first, planned = time.monotonic() - began, spent
    assert driver.wait() == 0, (folder / "said").read_text()[-800:]
    state = pickle.loads((folder / "spool" / "state").read_bytes())
    took, jobs = time.monotonic() - began - first, int((folder / "spool" / "count").read_text())
    longest = max(after - before for before, after in zip(state["looks"], state["looks"][1:], strict=False))
    return [
        jobs,
        first,
        planned,
        jobs / took,
        1e3 * (spent - planned) / jobs,
        most,
        100 * state["busy"] / gpus / took,
        longest,
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=200, help="lines of the experiment [%(default)s]")
    parser.add_argument("--seeds", type=int, default=1, help="of each [%(default)s]")
    parser.add_argument("--gpus", type=int, default=50, help="of the cluster [%(default)s]")
    parser.add_argument("--seconds", type=float, default=5, help="that a job lasts, on average [%(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        folder.mkdir()
        project(folder, options.runs, options.seeds)
        row = drive(folder, options.gpus, options.seconds)
    headers = [
        "jobs",
        "s to the first",
        "CPU s of it",
        "jobs a s",
        "CPU ms a job",
        "MB",
        "GPUs busy %",
        "s between looks",
    ]
    print(
        tabulate([row], headers, tablefmt="github", floatfmt=(".0f", ".0f", ".0f", ".1f", ".0f", ".0f", ".0f", ".0f"))
    )


if __name__ == "__main__":
    main()
