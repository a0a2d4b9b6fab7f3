"""Experiments made by Slurm jobs are the experiments that this machine makes by itself."""

import re
import shutil

import pytest
from driver import PROFILE, Driver, sessions

from cluster import Cluster

# The experiment that users begin with, with as little training as its tables need.
DIGITS = ("results/tables/digits.md", "results/figures/digits")


@pytest.fixture(scope="session")
def digits(site, copied, tmp_path_factory):
    """The digits experiment, in two epochs and one seed, as snakemake makes it without a cluster."""
    checkout = copied(site, tmp_path_factory.mktemp("digits"))
    checkout.replace("config/digits.yaml", "seeds: [0, 1, 2, 3, 4]", "seeds: [0]")
    checkout.replace("config/digits.yaml", "epochs: 30, labels: all, seeds: [0]", "epochs: 3, labels: all")
    checkout.replace("config/recipes/digits.yaml", "epochs: 14", "epochs: 2")
    result = checkout.run("snakemake", "--cores", "2", *DIGITS)
    assert result.returncode == 0, result.stdout
    return checkout


def forget_results(checkout):
    for name in ("results", "logs", ".snakemake"):
        shutil.rmtree(checkout.folder / name)
    checkout.run("git", "checkout", "results/README.md")
    return checkout


def made(checkout, experiment: str) -> dict[str, bytes]:
    """Everything that has to be the same wherever an experiment is made: weights, histories, measurements, tables."""
    results = checkout.folder / "results"
    files = [*results.glob(f"{experiment}/*/seed*/*.safetensors"), *results.glob(f"{experiment}/*/seed*/history.csv")]
    # What a table was made from has a checksum in a .json beside it: of profiles too, which differ.
    tables = results.glob(f"tables/{experiment}/*")
    files += [file for file in tables if "speed" not in file.name and file.suffix != ".json"]
    accuracies = {
        str(file.relative_to(results)): re.findall(rb'"(?:top1|top5|nll|ece|agreement)": .*', file.read_bytes())
        for file in results.glob(f"{experiment}/*/seed*/metrics.json")
    }
    return {str(file.relative_to(results)): file.read_bytes() for file in files} | accuracies


def test_the_digits_experiment_is_the_local_one(digits, copied, cluster, drive, tmp_path):
    here = forget_results(copied(digits, tmp_path))
    driver = drive(here, *DIGITS)
    driver.wait_until(lambda: cluster.running("train_student_wildcards_digits_resnet8"), "a student")
    job = cluster.running("train_student")[0]
    facts = cluster.run("scontrol", "--oneliner", "show", "job", job["JobID"])
    assert re.fullmatch(r"rule_train_student_wildcards_digits_resnet8\S*_0", job["Comment"])
    assert "gres:gpu:1" in facts
    assert "TimeLimit=1-00:00:00" in facts
    driver.finish(seconds=1500)
    assert made(here, "digits") == made(digits, "digits")
    assert len(made(here, "digits")) >= 18
    ran = [each["Comment"] for each in cluster.jobs()]
    assert sum("rule_train" in comment for comment in ran) >= 5
    assert not any("tables" in comment or "figures" in comment for comment in ran)
    assert here.planned("--profile", "slurm", *DIGITS) == set()
    assert here.planned("--cores", "1", *DIGITS) == set()


def test_two_nodes_train_together_as_two_local_processes_do(here, copied, cluster, drive, tmp_path):
    target = "results/tiny/small/seed0/weights.safetensors"
    (tmp_path / "local").mkdir()
    local = copied(here, tmp_path / "local")
    result = local.run("snakemake", "--cores", "2", target, "--set-resources", "train_student:gpus_per_node=2")
    assert result.returncode == 0, result.stdout
    here.replace(
        PROFILE,
        "  train_student: *training\n",
        "  train_student: {<<: *training, nodes: 2, mpi: srun, tasks: 2, tasks_per_gpu: 0}\n",
    )
    # The nodes of this cluster have names that no resolver knows.
    drive(here, target, MASTER_ADDR="127.0.0.1").finish()
    trainings = [job for job in cluster.jobs() if "train_student" in job["Comment"]]
    job = max(trainings, key=lambda each: int(each["JobID"]))
    assert job["NodeList"] == "n[1-2]"
    assert [session["processes"] for session in sessions(here, "tiny/small")] == [2]
    assert (here.folder / target).read_bytes() == (local.folder / target).read_bytes()


def test_the_log_of_a_rank_that_failed_is_shown(here, cluster, drive):
    """Bad input that only the processes of a training meet: one line, its exit code, no traceback of torchrun."""
    here.replace("config/recipes/tiny.yaml", "batch: 8", "batch: 7")
    here.replace(PROFILE, "retries: 2", "retries: 0")
    here.replace(
        PROFILE,
        "  train_student: *training\n",
        "  train_student: {<<: *training, nodes: 2, mpi: srun, tasks: 2, tasks_per_gpu: 0}\n",
    )
    driver = drive(here, "results/tiny/small/seed0/weights.safetensors", MASTER_ADDR="127.0.0.1")
    assert driver.wait() == 1
    said = driver.log.read_text()
    assert "tiny.runs.small.batch: 7 images cannot be shared out evenly to 2 devices" in said
    assert "Traceback" not in said


def test_other_gpus_than_processes_are_noticed(here, cluster, drive):
    here.replace(PROFILE, "gpus_per_node: 1\n", "gpus_per_node: 2\n")
    here.replace(PROFILE, "retries: 2", "retries: 0")
    driver = drive(here, "results/tiny/small/seed0/weights.safetensors")
    assert driver.wait() == 1
    assert "distillery: gpus_per_node is 2, but Slurm granted 1 GPUs on a node; make gres" in driver.log.read_text()


@pytest.fixture
def accounted(cluster, tmp_path_factory):
    """The same cluster with an accounting database, in place of the one without."""
    cluster.stop()
    other = Cluster(tmp_path_factory.mktemp("accounted"), accounting=True)
    try:
        other.start()
        yield other
    finally:
        other.stop()
        cluster.start()


def test_with_accounting_jobs_are_charged_wait_for_limits_and_cancelled_ones_are_noticed(here, accounted):
    here.replace(PROFILE, "  # slurm_account: my-account  ", "  slurm_account: lab  ")
    accounted.run("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=1")
    accounted.run("sbatch", "--account=lab", "--output=/dev/null", "--wrap=sleep 10")
    target = "results/tiny/small/seed0/metrics.json"
    driver = Driver(here, accounted, target)
    try:
        driver.wait_until(lambda: accounted.running("train_student"), "the student")
        accounted.run("scancel", accounted.running("train_student")[0]["JobID"])
        driver.finish()
    finally:
        driver.kill()
    assert re.search(r"does not take job .*: .*AssocMaxSubmitJobLimit", driver.log.read_text())
    charged = accounted.run("sacct", "-X", "-n", "-P", "--format=Account,State,Comment")
    assert re.search(r"lab\|CANCELLED by 0\|rule_train_student_wildcards_tiny_small_0", charged)
    assert re.search(r"lab\|COMPLETED\|rule_train_student_wildcards_tiny_small_0", charged)
