"""What `pip install distillery` brings, without any extra, is enough to train, evaluate and tabulate."""

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
    PROJECT = tomllib.load(file)["project"]
HIDE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = frozenset({hidden})


class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
"""
USE = """
from distillery.cli import main

for command in {commands}:
    try:
        main(command)
    except SystemExit as end:
        assert not end.code, command
"""


def brought(requirements):
    """The distributions that a list of requirements brings here."""
    found, waiting = set(), [(Requirement(line), "") for line in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            key = canonicalize_name(requirement.name), wanted
            if key not in found:
                found.add(key)
                waiting += [(Requirement(line), wanted) for line in metadata.requires(requirement.name) or ()]
    return {name for name, _ in found}


def hidden():
    """The packages here that a core install would not have, but optree: torch asks its metadata, which stay."""
    core = brought(PROJECT["dependencies"]) | {"distillery"}
    return {
        package
        for package, owners in metadata.packages_distributions().items()
        if package != "optree" and not core & {canonicalize_name(owner) for owner in owners}
    }


@pytest.mark.slow
def test_the_workflow_and_dvc_are_extras_of_a_light_core():
    assert {"snakemake", "dvc", "dvc_data", "pulp", "boto3", "pytest"} <= hidden()
    cuda = {name for name in brought(PROJECT["dependencies"]) if name.startswith(("nvidia-", "cuda-"))}
    assert len(brought(PROJECT["dependencies"]) - cuda) <= 90


def test_the_lock_for_cpus_is_the_lock_without_cuda_and_torch_of_the_same_version(tmp_path):
    root = Path(__file__).parents[1]
    plan = ["make", "--dry-run", "--always-make", "--file", str(root / "Makefile"), "TORCH=cpu", "UV=.uv/bin/uv"]
    shutil.copy(root / "requirements.txt", tmp_path)
    shutil.copy(root / "pyproject.toml", tmp_path)
    steps = subprocess.run(
        [*plan, ".venv/.installed"], cwd=tmp_path, capture_output=True, text=True
    ).stdout.splitlines()
    (select,) = (step for step in steps if step.endswith("> .requirements-cpu.txt"))
    (torch,) = (step for step in steps if "--torch-backend cpu" in step)
    subprocess.run(select, shell=True, cwd=tmp_path, check=True)
    whole, left = (
        dict(re.findall(r"^([a-z][\w.\[\],-]*)(==.*(?:\n +\S.*)*)", (tmp_path / name).read_text(), flags=re.MULTILINE))
        for name in ("requirements.txt", ".requirements-cpu.txt")
    )
    gone = whole.keys() - left.keys()
    assert {"torch", "torchvision", "triton"} < gone
    assert all(name.startswith(("torch", "triton", "nvidia-", "cuda-")) for name in gone)
    assert "torchmetrics" in left
    assert all(left[name].startswith(whole[name].partition("    # via")[0].rstrip()) for name in left)
    said = subprocess.run(f"echo {torch}", shell=True, cwd=tmp_path, capture_output=True, text=True).stdout
    versions = {name: whole[name].split()[0] for name in ("torch", "torchvision")}
    assert said.split()[-2:] == [f"{name}{version}" for name, version in versions.items()]


@pytest.mark.slow
def test_a_core_install_trains_evaluates_and_tabulates(workplace):
    workplace.edit("seeds: [0, 1]", "seeds: [0]")
    page = str(workplace.experiment)
    commands = [["check", page]]
    for run in ("big", "small", "taught"):
        commands += [[command, page, run, "--threads", "1", "--workers", "0"] for command in ("train", "evaluate")]
        commands += [["profile", page, run, "--threads", "1"]]
    commands += [["tabulate", page], ["plot", page], ["init", "thesis"]]
    script = HIDE.format(hidden=sorted(hidden())) + USE.format(commands=commands)
    done = subprocess.run([sys.executable, "-c", script], cwd=workplace.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (workplace.results / "tables" / "tiny.md").is_file()
    assert (workplace.folder / "thesis" / "workflow" / "Snakefile").is_file()
