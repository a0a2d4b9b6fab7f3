"""What is to be made, where, and with what machine."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from distillery.data.manifest import Manifest, load_manifest
from distillery.experiment import Experiment, RunSpec
from distillery.paths import dataset_folder, lock_path, run_folder
from distillery.tracking import Scalar, Tracked
from distillery.training.speed import Speed

# Of a ledger: all that descends from other runs, and what no one compares runs by.
UNTOLD = ("images", "network", "teacher", "teachers", "initial", "engine", "importing", "decay_patterns")
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
    track: tuple[str, ...] = ()  # trackers that watch
    measure: bool = False  # the finished network, for the evaluation that follows
    cache: Path | None = None  # a folder on a local disk, where `torch` keeps decoded images for the session
    speed: Speed = field(default_factory=Speed)


@dataclass(frozen=True)
class Job:
    """One run of an experiment with one seed."""

    experiment: Experiment
    run: str
    seed: int
    results: Path
    machine: Machine = field(default_factory=Machine)
    place: int | None = None  # of one of several teachers, where the run is looked at as that one meets it

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
        whole = self.experiment.spec(self.run, self.seed)
        return whole if self.place is None else whole.by_teacher()[self.place]

    @property
    def teacher(self) -> str | None:
        """The run that teaches it, where there is one."""
        return self.experiment.teachers_of(self.run)[self.place or 0] if self.spec.teacher is not None else None

    def by_teacher(self) -> "list[Job]":
        """As each of several teachers meets it; the job itself where there is one or none."""
        count = len(self.spec.teachers)
        return [replace(self, place=place) for place in range(count)] if count else [self]

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
    def tracked(self) -> Tracked:
        """What trackers are told of it."""
        teacher = ", ".join(self.experiment.teachers_of(self.run))
        settings = dict(_flat({key: value for key, value in self.spec.ledger.items() if key not in UNTOLD}))
        settings |= {"run": self.run, "digest": self.spec.digest} | ({"teacher": teacher} if teacher else {})
        project = f"{self.experiment.name}{'-rehearsal' if self.experiment.rehearsal else ''}"
        key = re.sub(r"[^A-Za-z0-9_-]", "-", f"{project}-{self.run}"[:80])
        return Tracked(
            project,
            self.run,
            self.name,
            f"{key}-seed{self.seed}-{self.spec.digest}",
            settings,
            tuple(dict.fromkeys([self.spec.dataset, self.spec.model])),
        )

    @property
    def lock(self) -> Path:
        """Where it says that it is being made; whatever its spec, it has one folder."""
        return lock_path(self.results, self.experiment.name, self.run, self.seed)


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Scalar]]:
    """Settings by dotted keys; what is null is left out."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None and key != "numerics":
            yield f"{before}{key}", value if isinstance(value, Scalar) else str(value)
