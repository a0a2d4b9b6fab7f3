"""The same workflow on a workstation with GPUs, and on an engine that takes scripts by a command."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

PROFILES = Path(__file__).parents[2] / "workflow" / "profiles"


def give_gpus(checkout, count):
    """Let nvidia-smi list so many devices; jobs keep their locks in the clone."""
    stub = checkout.folder / "stubs" / "nvidia-smi"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {n}: NVIDIA A40 (UUID: GPU-{n}-x)'\n" for n in range(count)))
    stub.chmod(0o755)
    path = f"{stub.parent}:{checkout.full_environment()['PATH']}"
    checkout.environment |= {"PATH": path, "DISTILLERY_GPU_LOCKS": str(checkout.folder / "locks")}
    return checkout


def devices_of(checkout, *arguments, **environment):
    """By command, the GPUs that its jobs would ask for, and how many jobs may share one."""
    command = ("snakemake", "--dry-run", "--printshellcmds", "results/tables/tiny.md", *arguments)
    result = checkout.run(*command, **environment)
    assert result.returncode == 0, result.stdout
    found = re.findall(r"exec \$WITH_GPUS (\S+|\$\(\(.+\)\)) (\d) .*?(train|evaluate|profile) \"", result.stdout)
    return {command: (count, share) for count, share, command in found}


def test_on_a_workstation_each_job_has_a_gpu_and_a_profile_its_own(unmade):
    give_gpus(unmade, 4)
    alone = {"train": ("1", "1"), "evaluate": ("1", "1"), "profile": ("$((1 > 0))", "1")}
    assert devices_of(unmade, "--profile", "local") == alone
    shared = {"train": ("1", "3"), "evaluate": ("1", "3"), "profile": ("$((3 > 0))", "1")}
    assert devices_of(unmade, "--profile", "local", DISTILLERY_JOBS_PER_GPU="3") == shared


def test_the_same_profile_serves_a_machine_without_gpus(unmade):
    assert devices_of(unmade, "--profile", "local")["train"] == ("0", "1")


@pytest.mark.parametrize(
    ("given", "told"), [("", "--track="), ("wandb", "--track=wandb"), ("wandb,mlflow", "--track=wandb,mlflow")]
)
def test_a_profile_may_name_trackers(pristine, given, told):
    names = ("--set-resources", f"train_teacher:track={given}") if given else ()
    target = "results/digits/resnet20/seed0/run.json"
    said = pristine.run("snakemake", "--dry-run", "--printshellcmds", target, *names).stdout
    assert f" {told} --requeue" in said


def test_a_profile_may_choose_what_makes_a_machine_fast(pristine):
    names = ("--set-resources", "train_teacher:speed=fused=off,compile=teacher")
    target = "results/digits/resnet20/seed0/run.json"
    said = pristine.run("snakemake", "--dry-run", "--printshellcmds", target, *names).stdout
    assert " --speed=fused=off,compile=teacher --track= --requeue" in said


def test_without_a_profile_gpus_that_all_jobs_would_share_are_pointed_out(unmade):
    said = give_gpus(unmade, 2).run("snakemake", "--cores", "1", "results/datasets/tiny/manifest.json").stdout
    assert "note: of 2 GPUs, all jobs use the first, together; with --profile local each has one of its own" in said


def test_an_engine_that_takes_scripts_runs_jobs_on_its_gpus(unmade):
    if find_spec("snakemake_executor_plugin_cluster_generic") is None:
        pytest.skip("needs snakemake-executor-plugin-cluster-generic")
    give_gpus(unmade, 2)
    profile = "workflow/profiles/cluster-generic"
    # What spares an engine is waited for by nobody here.
    unmade.replace(f"{profile}/profile.yaml", "max-status-checks-per-second: 1", "max-status-checks-per-second: 20")
    result = unmade.run("snakemake", "--profile", profile, "results/tiny/small/seed0/run.json")
    assert result.returncode == 0, result.stdout
    codes = [path.read_text() for path in (unmade.folder / ".snakemake" / "cluster-generic").glob("*.code")]
    assert codes == ["0\n"] * 2  # data set, training
    said = unmade.read("logs/tiny/small/seed0/train.log")
    assert re.search(r"warning: GPU GPU-[01]-x is meant for this run, but torch .* finds none", said)


def test_every_rule_has_every_resource_that_a_submit_command_names(unmade):
    profile = yaml.safe_load((PROFILES / "cluster-generic" / "profile.yaml").read_text())
    named = set(re.findall(r"resources\.(\w+)", profile["cluster-generic-submit-cmd"]))
    named |= {name for rule in profile["set-resources"].values() for name in rule} - {"workers"}
    assert named <= set(profile["default-resources"])


@pytest.mark.parametrize("name", ["local", "slurm", "cluster-generic"])
def test_profiles_name_rules_that_there_are(name):
    text = (PROFILES / name / "profile.yaml").read_text().replace(": ?", ": ")
    rules = set(re.findall(r"^(?:use rule \w+ as|rule) (\w+)", "".join(
        path.read_text() for path in sorted(PROFILES.parent.glob("rules/*.smk"))
    ), flags=re.MULTILINE))  # fmt: skip
    assert set(yaml.safe_load(text)["set-resources"]) <= rules
