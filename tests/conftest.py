"""What tests of several rooms share: an experiment that trains in a second, and the reference vectors."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]

EXPERIMENT = """
tiny:
  dataset: tiny
  seeds: [0, 1]
  runs:
    big:    {model: cifar_resnet14, recipe: tiny, seeds: [0]}
    small:  {model: cifar_resnet8, recipe: tiny}
    taught: {model: cifar_resnet8, recipe: tiny, teacher: big,
             objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}}
  tables:
    methods: {title: Tiny methods, rows: [big, small, taught], columns: [top1, nll, ece, agreement, params, macs, size]}
"""
RECIPE = """
epochs: 2
batch: 8
optimizer: {name: sgd, lr: 0.05, momentum: 0.9, nesterov: true, weight_decay: 5.0e-4}
schedule: {name: cosine, warmup: {name: ratio, epochs: 1}}
preprocess: {size: 8}
augment:
  - {name: random_crop, padding: 1}
  - {name: horizontal_flip}
"""


@pytest.fixture
def one_thread():
    """Many small networks and images, which several threads only slow down."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_images(folder: Path, train: int = 12, val: int = 4) -> None:
    """Write a class-folder tree of 8 x 8 PNGs of three separable classes."""
    from PIL import Image

    generator = np.random.Generator(np.random.Philox(key=0))
    for split, count in (("train", train), ("val", val)):
        for number, name in enumerate(("ape", "bee", "cow")):
            target = folder / split / name
            target.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 128, (8, 8, 3)) + 60 * np.eye(3, dtype=int)[number]
                Image.fromarray(pixels.astype(np.uint8)).save(target / f"{index:03d}.png")


def written(folder: Path) -> dict[str, bytes]:
    """What training itself has written into the folder of a run."""
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "history.csv")}


@dataclass(frozen=True)
class Workplace:
    """A folder with config/, data/ and results/, as a user has it."""

    folder: Path

    @property
    def experiment(self) -> Path:
        return self.folder / "config" / "tiny.yaml"

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def edit(self, old: str, new: str) -> None:
        """Change the experiment."""
        text = self.experiment.read_text()
        assert old in text
        self.experiment.write_text(text.replace(old, new))

    def edit_recipe(self, text: str) -> None:
        """Append keys to the recipe, or replace those it has."""
        path = self.folder / "config" / "recipes" / "tiny.yaml"
        keys = {line.partition(":")[0] for line in text.splitlines()}
        kept = [line for line in path.read_text().splitlines() if line.partition(":")[0] not in keys]
        path.write_text("\n".join([*kept, text, ""]))

    def job(self, run="small", seed=0, results="results", **machine):
        """A run to be made; a further results folder shares the prepared data and the teacher."""
        from distillery.experiment import load_experiment
        from distillery.training.job import Job, Machine

        folder = self.folder / results
        if not folder.exists():
            (folder / "tiny").mkdir(parents=True)
            for shared in ("datasets", "tiny/big"):
                (folder / shared).symlink_to(self.results / shared)
        machine = {"workers": 0, "threads": 1} | machine
        return Job(load_experiment(self.experiment), run, seed, folder, Machine(**machine))

    def make(self, *arguments, **options) -> Path:
        """Make a run, given like a job; its folder."""
        from distillery.training.run import make_run

        job = self.job(*arguments, **options)
        make_run(job)
        return job.folder


@pytest.fixture(scope="session")
def prepared_tiny(tmp_path_factory):
    """The tiny workplace with its data set prepared; copied by `workplace` for each test."""
    from distillery.data.prepare import prepare_dataset
    from distillery.experiment.loading import load_dataset

    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config" / "recipes").mkdir(parents=True)
    (folder / "config" / "tiny.yaml").write_text(EXPERIMENT)
    (folder / "config" / "recipes" / "tiny.yaml").write_text(RECIPE)
    write_images(folder / "data" / "tiny")
    (folder / "config" / "datasets.yaml").write_text(f"tiny: {{path: {folder / 'data' / 'tiny'}}}\n")
    dataset = load_dataset(folder / "config" / "datasets.yaml", "tiny")
    prepare_dataset("tiny", dataset, folder / "results" / "datasets" / "tiny", workers=1)
    return folder


@pytest.fixture
def workplace(prepared_tiny, tmp_path):
    """A private copy of the tiny workplace."""
    shutil.copytree(prepared_tiny, tmp_path / "work")
    return Workplace(tmp_path / "work")


@pytest.fixture
def stop_after(monkeypatch):
    """Let a run receive a signal in the given one of its steps; ``monkeypatch.undo()`` ends it."""
    from distillery.training.metric_logger import MetricLogger

    def arrange(steps):
        taken, original = [], MetricLogger.step

        def step(self, *arguments):
            taken.append(1)
            if len(taken) == steps:
                signal.raise_signal(signal.SIGTERM)
            return original(self, *arguments)

        monkeypatch.setattr(MetricLogger, "step", step)

    return arrange


@pytest.fixture
def golden():
    """Load a file of reference vectors by name: its arrays, and how they were made."""

    def load(name):
        with np.load(Path(__file__).parent / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
            content = dict(arrays)
        return content, json.loads(str(content.pop("meta")))

    return load
