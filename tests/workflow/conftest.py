"""A clean clone of this repository, and one in which a tiny experiment was really made by Snakemake."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.workflow.forked import snakemake

ROOT = Path(__file__).parents[2]

TINY_EXPERIMENT = """
tiny:
  dataset: tiny
  runs:
    big: {model: cifar_resnet14, recipe: tiny}
    small: {model: cifar_resnet8, recipe: tiny}
    taught: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {weight: 0.5}, kd: {weight: 0.5}}}
  tables:
    methods: {rows: [big, small, taught], columns: [top1, nll, agreement, params]}
"""
TINY_RECIPE = """
epochs: 2
batch: 8
optimizer: {name: sgd, lr: 0.05}
schedule: {name: constant}
preprocess: {size: 8}
"""


@dataclass
class Checkout:
    """A clone of the repository, with commands that find this environment and nothing of the user's."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = self.full_environment() | environment
        if command[0] == "snakemake":
            return snakemake(self.folder, environment, *command)
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def full_environment(self) -> dict[str, str]:
        empty = self.folder.parent / "empty-home"
        empty.mkdir(exist_ok=True)
        homes = dict.fromkeys(
            ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_DIRS"), str(empty)
        )
        path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
        # The clone's own sources, not those that the environment was installed from.
        return {"PATH": path, "PYTHONPATH": str(self.folder / "src"), **homes, **self.environment}

    def planned(self, *arguments: str) -> set[str]:
        """The messages of the jobs that a dry run would start."""
        result = self.run("snakemake", *arguments, "--dry-run")
        assert result.returncode == 0, result.stdout
        return set(re.findall(r"^Job \d+: (.+)$", result.stdout, flags=re.MULTILINE))

    def replace(self, name: str, old: str, new: str) -> None:
        """Edit a file."""
        path = self.folder / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def append(self, name: str, text: str) -> None:
        """Write more into a file."""
        path = self.folder / name
        path.write_text(path.read_text() + text)

    def write(self, name: str, text: str) -> None:
        """Write a file."""
        (self.folder / name).write_text(text)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()


def clone(folder: Path) -> Checkout:
    """Clone this repository, with uncommitted changes of tracked files; what git does not know stays out."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs git's history: this is no clone")
    git = ("git", "-C", str(ROOT))
    subprocess.run([*git, "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)
    changed = subprocess.run([*git, "diff", "--name-only", "-z", "HEAD"], check=True, capture_output=True, text=True)
    for name in filter(None, changed.stdout.split("\0")):
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return Checkout(folder)


def copy(folder: Path, to: Path) -> Checkout:
    """Copy a clone; dates of files are kept. cp takes a tenth of shutil's time."""
    subprocess.run(["cp", "-a", folder, to], check=True)
    return Checkout(to)


def add_tiny_experiment(checkout: Checkout) -> None:
    """Add an experiment that is made in seconds, on a few random images of three separable classes."""
    checkout.append("config/datasets.yaml", "tiny: {path: data/tiny}\n")
    checkout.write("config/tiny.yaml", TINY_EXPERIMENT)
    checkout.write("config/recipes/tiny.yaml", TINY_RECIPE)
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("ape", "bee", "cow")):
            folder = checkout.folder / "data" / "tiny" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (8, 8, 3)) + 60 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def made_once(tmp_path_factory, worker: str, name: str, make: Callable[[Checkout], None]) -> Checkout:
    """A clone that the test run's workers share: whoever asks first makes it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker == "master" else base.parent) / name
    folder.mkdir(exist_ok=True)
    checkout = Checkout(folder / "distillery")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            shutil.rmtree(checkout.folder, ignore_errors=True)
            clone(checkout.folder)
            make(checkout)
            (folder / "made").touch()
    return checkout


@pytest.fixture(scope="session")
def pristine(tmp_path_factory, worker_id):
    """A clean clone. Read only."""
    return made_once(tmp_path_factory, worker_id, "pristine", lambda checkout: None)


@pytest.fixture
def fresh(pristine, tmp_path):
    """A clean clone of one's own."""
    return copy(pristine.folder, tmp_path / "distillery")


@pytest.fixture
def unmade(fresh):
    """A clone with the tiny experiment, of which nothing was made yet."""
    add_tiny_experiment(fresh)
    return fresh


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A clone in which Snakemake made the tiny experiment. Read only."""

    def make(checkout: Checkout) -> None:
        add_tiny_experiment(checkout)
        assert checkout.run("dvc", "add", "--quiet", "data").returncode == 0
        result = checkout.run("snakemake", "--config", "experiments=tiny", "--cores", "2")
        assert result.returncode == 0, result.stdout

    return made_once(tmp_path_factory, worker_id, "finished", make)


@pytest.fixture
def made(finished, tmp_path):
    """A copy of the clone with the tiny experiment, to edit."""
    return copy(finished.folder, tmp_path / "distillery")


def let_dvc_know_tiny(checkout: Checkout) -> None:
    """Let `tiny` be the experiment that DVC knows, as it knows `digits`."""
    checkout.replace("dvc.yaml", "- digits\n", "- tiny\n")
    checkout.replace("dvc.yaml", "digits: digits\n", "tiny: tiny\n")


def commit_all(checkout: Checkout) -> None:
    """Commit everything that git does not ignore."""
    for command in (("add", "--all"), ("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "x")):
        result = checkout.run("git", *command)
        assert result.returncode == 0, result.stdout


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, worker_id, finished):
    """The clone with the tiny experiment, recorded and committed. Read only."""

    def make(checkout: Checkout) -> None:
        shutil.rmtree(checkout.folder)
        copy(finished.folder, checkout.folder)
        let_dvc_know_tiny(checkout)
        result = checkout.run("python", "scripts/versions.py", "record", "tiny")
        assert result.returncode == 0, result.stdout
        commit_all(checkout)

    return made_once(tmp_path_factory, worker_id, "recorded", make)


@pytest.fixture
def recorded_copy(recorded, tmp_path):
    """A copy of the recorded experiment, to edit."""
    return copy(recorded.folder, tmp_path / "distillery")


@pytest.fixture
def made_home(made):
    """The tiny experiment, known to DVC, made and not recorded."""
    let_dvc_know_tiny(made)
    return made
