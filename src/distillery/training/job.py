"""What is to be made, where, and with what machine."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from distillery.data.manifest import Manifest, load_manifest
from distillery.experiment import Experiment, RunSpec
from distillery.paths import dataset_folder, lock_path, run_folder

# What prepares images. `memory` keeps them decoded; `torch` has worker processes, and so has `dali` for measurements;
# `auto` is `memory` where they fit and the recipe allows it, and `torch` elsewhere.
LoaderName = Literal["auto", "memory", "torch", "dali"]


@dataclass(frozen=True)
class Machine:
    """What belongs to the machine: it changes how fast a run is made, never what is made."""

    workers: int = 2
    threads: int | None = None
    device_batch: int | None = None  # most images on one device at once; the rest of a batch is accumulated
    checkpoint_seconds: float = 60.0
    loader: LoaderName = "auto"


@dataclass(frozen=True)
class Job:
    """One run of an experiment with one seed."""

    experiment: Experiment
    run: str
    seed: int
    results: Path
    machine: Machine = field(default_factory=Machine)

    @property
    def name(self) -> str:
        """How the run is called on screens."""
        return f"{self.run}/seed{self.seed}"

    @property
    def where(self) -> str:
        """Where its line stands, for error messages."""
        return f"{self.experiment.path}: {self.experiment.name}.runs.{self.run}"

    @cached_property
    def spec(self) -> RunSpec:
        """What it is, resolved."""
        return self.experiment.spec(self.run, self.seed)

    @cached_property
    def manifest(self) -> Manifest:
        """What its data set holds."""
        return load_manifest(self.data_folder)

    @property
    def data_folder(self) -> Path:
        """Where its prepared data set lies."""
        return dataset_folder(self.results, self.spec.dataset)

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return run_folder(self.results, self.experiment.name, self.run, self.seed)

    @property
    def work_folder(self) -> Path:
        """Where it keeps checkpoints until it is complete; another spec or other data never continue from them."""
        return self.lock.with_name(f"{self.spec.digest}-{self.manifest.digest[:8]}")

    @property
    def lock(self) -> Path:
        """Where it says that it is being made; whatever its spec, it has one folder."""
        return lock_path(self.results, self.experiment.name, self.run, self.seed)
