"""What a job finished after Snakemake had died, as when a login node is rebooted."""

import shutil
import subprocess
import time

import psutil
import pytest
from tests.workflow.conftest import copy

pytestmark = pytest.mark.slow

FOLDER = "results/tiny/small/seed0"
FILES = [f"{FOLDER}/{name}" for name in ("weights.safetensors", "history.csv", "run.json", "tensorboard")]


@pytest.fixture(scope="module")
def left(finished, tmp_path_factory):
    """A clone in which a training came to its end alone. Read only."""
    made = copy(finished.folder, tmp_path_factory.mktemp("left") / "distillery")
    shutil.rmtree(made.folder / FOLDER)
    driver = subprocess.Popen(
        ["snakemake", "--cores", "1", FILES[0]],
        cwd=made.folder,
        env=made.full_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while not (orphans := trainings(driver)):
        assert time.monotonic() < deadline, "the training does not start"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    psutil.wait_procs(orphans, timeout=60)
    assert made.run("snakemake", "--unlock").returncode == 0
    return made


@pytest.fixture
def orphaned(left, tmp_path):
    """A copy of it, to edit."""
    return copy(left.folder, tmp_path / "distillery")


def trainings(driver: subprocess.Popen[bytes]) -> list[psutil.Process]:
    children = psutil.Process(driver.pid).children(recursive=True)
    return [child for child in children if "train" in child.cmdline() and "snakemake" not in child.name()]


def test_it_can_be_kept_as_the_cluster_guide_says(orphaned, finished):
    assert orphaned.planned("--cores", "1", FILES[0]) == {"train tiny/small, seed 0"}
    assert orphaned.run("snakemake", "--cleanup-metadata", *FILES).returncode == 0
    assert orphaned.planned("--cores", "1", FILES[0]) == set()
    assert (orphaned.folder / FILES[0]).read_bytes() == (finished.folder / FILES[0]).read_bytes()


def test_otherwise_it_is_made_again(orphaned, finished):
    result = orphaned.run("snakemake", "--cores", "1", FILES[0])
    assert result.returncode == 0, result.stdout
    assert "train tiny/small, seed 0" in result.stdout
    assert (orphaned.folder / FILES[0]).read_bytes() == (finished.folder / FILES[0]).read_bytes()
