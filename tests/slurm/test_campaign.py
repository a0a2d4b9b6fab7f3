"""Twelve runs on a cluster that breaks all the time end in the tables of a machine that never does."""

import os
import random
import signal
import time

import pytest
from driver import PROFILE

EXPERIMENT = """
campaign:
  dataset: tiny
  seeds: [0, 1, 2, 3]
  runs:
    teacher: {model: cifar_resnet14, recipe: tiny, epochs: 12, seeds: [0]}
    alone: {model: cifar_resnet8, recipe: tiny, epochs: 12}
    taught: {model: cifar_resnet8, recipe: tiny, epochs: 12, teacher: teacher,
             objective: {ce: {weight: 0.5}, kd: {weight: 0.5}}}
    matched: {model: cifar_resnet8, recipe: tiny, epochs: 12, seeds: [0, 1, 2], teacher: teacher,
              objective: {ce: {}, mgd: {reducer: amp}}}
  tables:
    methods: {rows: [teacher, alone, taught, matched], columns: [top1, nll, ece, agreement]}
"""
TABLE = "results/tables/campaign.md"
SEEDS = [int(seed) for seed in os.environ.get("CAMPAIGN_SEEDS", "1").split(",")]


@pytest.fixture(scope="session")
def undisturbed(site, copied, tmp_path_factory):
    """The experiment as this machine makes it by itself."""
    checkout = copied(site, tmp_path_factory.mktemp("undisturbed"))
    checkout.write("config/campaign.yaml", EXPERIMENT)
    result = checkout.run("snakemake", "--cores", "2", TABLE)
    assert result.returncode == 0, result.stdout
    return checkout


class Trouble:
    """What goes wrong on clusters, drawn from a seed."""

    def __init__(self, cluster, seed: int) -> None:
        self.cluster = cluster
        self.draw = random.Random(seed)
        self.happened: list[str] = []

    def strike(self) -> None:
        """Break something that works on a training, if there is one."""
        jobs = self.cluster.running("rule_train")
        if not jobs:
            return
        job = self.draw.choice(jobs)
        kind = self.draw.choice([self.cancel, self.requeue, self.warn, self.crash, self.lose_node])
        kind(job)
        self.happened.append(f"{kind.__name__} {job['Comment'].removeprefix('rule_')}")

    def cancel(self, job) -> None:
        self.cluster.run("scancel", job["JobID"])

    def requeue(self, job) -> None:
        self.cluster.run_any("scontrol", "requeue", job["JobID"])

    def warn(self, job) -> None:
        self.cluster.run_any("scancel", "--signal=TERM", job["JobID"])

    def crash(self, job) -> None:
        """Kill the training itself, without a chance to save."""
        for pid in self.cluster.trainings(job):
            os.kill(pid, signal.SIGKILL)

    def lose_node(self, job) -> None:
        """Take the node away, and bring it back when Slurm has noticed."""
        node = job["NodeList"]
        self.cluster.kill_node(node)
        self.cluster.run_any("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        time.sleep(1)
        # It returns by itself. Resumed before it has reported its GPUs, Slurm 22.05 may give them away and crash.
        self.cluster.start_node(node)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_campaign_with_random_kills_gives_the_same_tables_as_one_machine(
    undisturbed, copied, site, cluster, drive, tmp_path, seed
):
    here = copied(site, tmp_path)
    here.write("config/campaign.yaml", EXPERIMENT)
    # Each kind of trouble but cancelling and crashing is free; these cost one of a run's retries.
    here.replace(PROFILE, "retries: 2", "retries: 8")
    driver = drive(here, TABLE)
    trouble = Trouble(cluster, seed)
    deadline = time.monotonic() + 1800
    while driver.process.poll() is None and time.monotonic() < deadline:
        cluster.hurry()
        time.sleep(trouble.draw.uniform(3, 9))
        if len(trouble.happened) < 12:
            trouble.strike()
    driver.finish(seconds=1)
    print(f"seed {seed}: {', '.join(trouble.happened)}")
    assert len(trouble.happened) == 12
    tables = [f"results/tables/campaign.{kind}" for kind in ("md", "tex", "csv")]
    for table in tables:
        assert here.read(table) == undisturbed.read(table)
    for weights in sorted((undisturbed.folder / "results" / "campaign").rglob("weights.safetensors")):
        name = weights.relative_to(undisturbed.folder)
        assert (here.folder / name).read_bytes() == weights.read_bytes(), name
    assert not list((here.folder / "results" / "work").iterdir())
