"""Synthetic results of an experiment, written as real files, with statistics known by construction."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from distillery.experiment import Experiment, load_experiment
from distillery.paths import dataset_folder, profile_path, run_folder
from distillery.reporting.content import Content, gather, read_ledger
from distillery.reporting.measurements import read_measurements

EXPERIMENT = """
toy:
  dataset: toy
  seeds: [0, 1, 2]
  runs:
    big:       {model: cifar_resnet20, recipe: toy, seeds: [0]}
    small:     {model: cifar_resnet8, recipe: toy}
    small-kd:  {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, kd: {temperature: 4}}}
  tables:
    methods:
      title: Teaching a small network
      rows: [big, small, small-kd]
      columns: [top1, nll, agreement, params, size]
    speed:
      title: Speed on this machine
      rows: [big, small]
      columns: [latency, throughput]
"""
RECIPE = """
epochs: 4
batch: 8
optimizer: {name: sgd, lr: 0.05}
schedule: {name: cosine}
preprocess: {size: 8}
"""


def origin(commit: str = "1a2b3c4d5e", dirty: bool = False, torch: str = "2.9.0") -> dict:
    """The provenance of a process, as run.json has it."""
    return {"git": {"commit": commit, "dirty": dirty}, "packages": {"distillery": "0.1.0", "torch": torch}}


@dataclass
class Desk:
    """A folder with an experiment and whatever results a test writes for it."""

    folder: Path
    text: str = EXPERIMENT

    def __post_init__(self):
        (self.folder / "config" / "recipes").mkdir(parents=True, exist_ok=True)
        (self.folder / "config" / "recipes" / "toy.yaml").write_text(RECIPE)
        (self.folder / "config" / "datasets.yaml").write_text("toy: {path: data/toy}\n")
        self.write_experiment(self.text)
        self.write_manifest()

    @property
    def experiment(self) -> Experiment:
        return load_experiment(self.folder / "config" / "toy.yaml")

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def ledger(self) -> Path:
        return self.folder / "published.csv"

    def write_experiment(self, text: str) -> None:
        (self.folder / "config" / "toy.yaml").write_text(text)

    def write_manifest(self, overlap: int = 0) -> None:
        folder = dataset_folder(self.results, "toy")
        folder.mkdir(parents=True, exist_ok=True)

        def split(name: str, images: int) -> dict:
            (folder / f"{name}.arrow").write_bytes(b"x")
            return {
                "folder": name,
                "images": images,
                "images_per_class": [images // 10] * 10,
                "width": [8, 8],
                "height": [8, 8],
                "modes": {"L": images},
                "formats": {"PNG": images},
                "content": "0",
                "shards": [{"file": f"{name}.arrow", "images": images, "bytes": 1, "sha256": "0"}],
            }

        manifest = {
            "name": "toy",
            "digest": "0",
            "classes": list("abcdefghij"),
            "statistics": {"mean": [0.5] * 3, "std": [0.2] * 3},
            "splits": {"train": split("train", 1440), "val": split("val", 360)},
            "duplicates": {
                "across_splits": [[f"train/a/{i}", f"val/a/{i}"] for i in range(overlap)],
                "within_train": 0,
                "within_val": 0,
            },
            "ignored": {"hidden": 0, "extensions": {}},
            "skipped": [],
        }
        (folder / "manifest.json").write_text(json.dumps({"format": 1, **manifest}))

    def write_metrics(self, run: str, seed: int, **values: object) -> None:
        experiment = self.experiment
        metrics = {
            "run": run,
            "seed": seed,
            "split": "val",
            "images": 360,
            "selection": "last",
            "epoch": 4,
            "top1": 90.0,
            "top5": 99.0,
            "nll": 0.3,
            "ece": 2.0,
            "agreement": 95.0 if experiment.teacher(run) else None,
            "teacher": experiment.teacher(run),
            "digest": experiment.spec(run, seed).digest,
            "weights_sha256": "0" * 64,
        } | values
        path = run_folder(self.results, experiment.name, run, seed) / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(metrics))
        if not path.with_name("run.json").is_file():
            self.write_record(run, seed)

    def write_record(self, run: str, seed: int, *sessions: dict) -> None:
        """Write what made a run: sessions with a provenance each."""
        path = run_folder(self.results, self.experiment.name, run, seed) / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"sessions": [{"provenance": session} for session in sessions or [origin()]]}))

    def write_profile(self, run: str, **values: object) -> None:
        experiment = self.experiment
        profile = {
            "run": run,
            "digest": experiment.spec(run).digest,
            "input": [3, 8, 8],
            "params": 77850,
            "macs": 780000,
            "size_bytes": 320000,
            "latency_ms": 1.25,
            "throughput": 4321.5,
            "throughput_batch": 32,
            "device": "Imaginary CPU",
            "threads": 1,
        } | values
        path = profile_path(self.results, experiment.name, run)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(profile))

    def write_history(self, run: str, seed: int, rows: list[dict[str, float]]) -> None:
        path = run_folder(self.results, self.experiment.name, run, seed) / "history.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [",".join(rows[0])] + [",".join(map(str, row.values())) for row in rows]
        path.write_text("\n".join(lines) + "\n")

    def write_ledger(self, *rows: str) -> None:
        self.ledger.write_text("\n".join(["run,metric,value,std,n,selection,source", *rows, ""]))

    def content(self, name: str) -> Content:
        """What a table says of the results that there are."""
        experiment = self.experiment
        runs = read_measurements(experiment, self.results, partial=True)
        return gather(experiment, name, experiment.config.tables[name], runs, read_ledger(experiment, self.ledger))

    def write_results(self) -> None:
        """Means and deviations that a reader can check: small 90, 91, 92; small-kd 92, 93, 94; big 95."""
        self.write_metrics("big", 0, top1=95.0, nll=0.2)
        self.write_profile("big", params=272474, size_bytes=1100000, latency_ms=2.5, throughput=1234.5)
        for run, first in (("small", 90.0), ("small-kd", 92.0)):
            self.write_profile(run)
            for seed in self.experiment.seeds(run):
                self.write_metrics(run, seed, top1=first + seed, nll=0.3 - 0.001 * (first - 90) + 0.01 * seed)


@pytest.fixture
def desk(tmp_path) -> Desk:
    return Desk(tmp_path)
