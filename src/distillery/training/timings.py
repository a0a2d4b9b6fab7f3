"""How long trainings took whose results are there, and what decides that: networks, images, devices."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from distillery.evaluation.profile import count_macs
from distillery.models import create_model
from distillery.paths import log_folder, regular
from distillery.results import try_json
from distillery.training.forecast import CLASSES

Kind = Literal["cpu", "gpu"]
# What a training takes of a forward pass: the pass itself, and twice as much backward.
PASSES = 3


@dataclass(frozen=True)
class Network:
    """What decides how long one image takes: a network, its arguments and the side of its images."""

    model: str
    arguments: tuple[tuple[str, Any], ...]
    size: int

    @classmethod
    def of(cls, model: str, arguments: Mapping[str, Any] | None, size: int) -> "Network":
        """A network with its arguments as a line of YAML has them."""
        return cls(model, tuple(sorted((arguments or {}).items())), size)

    def macs(self) -> float | None:
        """Multiplications with addition of one image; None for what cannot be counted."""
        return _macs(self.model, self.arguments, self.size)


@dataclass(frozen=True)
class Shape:
    """What decides how long a run takes on a machine: its student, its live teachers, and how many images they see."""

    student: Network
    teachers: tuple[Network, ...]
    batch: int
    precision: str
    terms: tuple[str, ...]
    epochs: int
    images: int  # of an epoch; 0 if it is not known

    @property
    def seen(self) -> int:
        """How many images the student sees in all."""
        return self.epochs * self.images

    def is_like(self, other: "Shape") -> bool:
        """Whether one image takes as long."""
        return self.each == other.each

    @property
    def each(self) -> tuple[object, ...]:
        """What decides the time of one image."""
        return self.student, self.teachers, self.batch, self.precision, self.terms

    def work(self) -> float | None:
        """Multiplications with addition of the whole run."""
        student, teachers = self.student.macs(), [teacher.macs() for teacher in self.teachers]
        if student is None or None in teachers:
            return None
        return self.seen * (PASSES * student + sum(macs for macs in teachers if macs is not None))

    def times(self, other: "Shape") -> float:
        """How many times as much work one image is."""
        works = [shape.work() for shape in (self, other)]
        each = [work / shape.seen if work else 0.0 for work, shape in zip(works, (self, other), strict=True)]
        return each[0] / each[1] if each[1] else 0.0


@dataclass(frozen=True)
class Finished:
    """A run that was made, and how long that took."""

    name: str
    spec: dict[str, Any]  # as recorded, without its seed
    shape: Shape
    kind: Kind
    device: str
    lanes: int  # GPUs, or CPU threads, that it took
    seconds: float

    def rate(self) -> float | None:
        """Multiplications with addition a second, on each of its GPUs or threads."""
        work = self.shape.work()
        return work / self.seconds if work and self.seconds else None


def finished_runs(results: Path) -> Iterator[Finished]:
    """The trainings under a folder of results whose records say how long they took, the oldest first."""
    records = sorted(results.glob("*/*/seed*/run.json"), key=lambda path: path.stat().st_mtime)
    for path in records:
        record = try_json(path) or {}
        sessions = record.get("sessions") or []
        try:
            seconds = sum(session["seconds"] for session in sessions)
            effective, last = record["effective"], sessions[-1]
            shape = recorded_shape(record["spec"], effective["steps_per_epoch"] * effective["batch"])
            on_cpu = last["device"] == "cpu"
            lanes = last["processes"] * (last["threads"] if on_cpu else 1)
        except (LookupError, TypeError):
            continue  # imported, or of a release that did not say it
        experiment, run, seed = path.parts[-4:-1]
        # Of a run that was never stopped, the job's whole time: the libraries' import too.
        whole = last_benchmark(log_folder(results, experiment, run, int(seed.removeprefix("seed"))) / "train")
        if len(sessions) == 1 and whole is not None:
            seconds = max(seconds, whole)
        spec = {key: value for key, value in record["spec"].items() if key != "seed"}
        name = f"{experiment}/{run}/{seed}"
        yield Finished(name, spec, shape, "cpu" if on_cpu else "gpu", last["device"], lanes, seconds)


def last_benchmark(path: Path) -> float | None:
    """The seconds of a job's last run, by Snakemake's file ``<path>.benchmark.jsonl``."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        benchmark = regular(path.with_name(f"{path.name}.benchmark.jsonl"))
        lines = benchmark.read_text(encoding="utf-8").splitlines()
        return float(json.loads(lines[-1])["s"])
    return None


def recorded_shape(spec: dict[str, Any], images: int) -> Shape:
    """That of a run whose spec is on record, and whose epochs have so many images."""
    recipe = spec["recipe"]
    taught = [*([spec | {"run": spec["teacher"]}] if spec.get("teacher") else []), *(spec.get("teachers") or ())]
    live = [each["run"] for each in taught if each.get("answers") is None]
    return Shape(
        Network.of(spec["model"], spec.get("model_args"), recipe["preprocess"]["size"]),
        tuple(Network.of(each["model"], each.get("model_args"), _recorded_size(each, recipe)) for each in live),
        recipe["batch"],
        recipe["precision"],
        tuple(sorted(spec["objective"] or ())),
        recipe["epochs"],
        images,
    )


def _recorded_size(spec: Mapping[str, Any], otherwise: Mapping[str, Any]) -> int:
    prepared = (spec.get("recipe") or {}).get("preprocess") or spec.get("preprocess") or otherwise["preprocess"]
    return int(prepared["size"])


@lru_cache(maxsize=1024)
def _macs(model: str, arguments: tuple[tuple[str, Any], ...], size: int) -> float | None:
    try:
        with torch.device("meta"):
            network = create_model(model, CLASSES, **dict(arguments)).eval()
        return float(count_macs(network, size))
    except Exception:  # whatever a network of somebody's own cannot do without data
        return None


def timed_networks(results: Path) -> Iterator[tuple[Network, Kind, float, str]]:
    """The networks that were timed: which, on what, images a second, and in which file."""
    for path in sorted(results.glob("*/*/profile.json")):
        profile = try_json(path) or {}
        record = next((found for each in path.parent.glob("seed*/run.json") if (found := try_json(each))), {})
        with suppress(LookupError, TypeError):
            spec = record["spec"]
            network = Network.of(spec["model"], spec.get("model_args"), int(profile["input"][1]))
            kind: Kind = "cpu" if profile["gpu_throughput"] is None else "gpu"
            yield network, kind, float(profile["throughput"]), str(path.relative_to(results))
