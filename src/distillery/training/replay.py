"""Make a finished run's first steps again, and see whether they give the weights that its record says."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distillery.cluster.signals import StopSignal
from distillery.errors import UserError
from distillery.evaluation.record import finished_record
from distillery.experiment import Experiment
from distillery.experiment.schema.recipe import Recipe
from distillery.paths import run_folder
from distillery.results import command, read_json
from distillery.training.build import build_training
from distillery.training.devices import settle
from distillery.training.job import Job, Machine
from distillery.training.loop import take_first_steps
from distillery.training.run import make_run, session_of, start
from distillery.training.speed import Speed

# What of a session, of the machine and of its packages may round sums or decode images in another way.
SESSION_KEYS = ("device", "processes", "threads", "precision", "loader", "accumulation")
MACHINE_KEYS = ("cpu", "cuda", "cudnn")
PACKAGES = ("torch", "torchvision", "timm", "lightning-fabric", "numpy", "pillow")


@dataclass(frozen=True)
class _Again(Job):
    """A run that is made again in a folder of its own, from the same data, teachers and weights."""

    into: Path = Path()

    @property
    def folder(self) -> Path:
        return self.into

    @property
    def lock(self) -> Path:
        return self.into / "work" / "lock"


def replay_run(experiment: Experiment, run: str, seed: int, results: Path, workers: int) -> str:
    """Take a run's first steps again, or import its weights again, and say in a line what came out.

    Raises:
        UserError: on a machine of the same kind, other weights came out; or it cannot be made at all.
    """
    record = finished_record(experiment, run, seed, results)
    with tempfile.TemporaryDirectory(prefix="distillery-") as folder:
        if "sessions" not in record:
            job = _Again(experiment, run, seed, results, into=Path(folder))
            make_run(job)
            again = read_json(job.folder / "run.json", "it")["weights_sha256"]
            if record.get("weights_sha256") not in (None, again):
                raise _differs(job, "imported again, it has other weights")
            return f"{job.name}: imported again: the same weights"
        return _replay_training(experiment, run, seed, results, workers, record, Path(folder))


def _replay_training(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int, record: dict[str, Any], folder: Path
) -> str:
    noted = next((session for session in record["sessions"] if "first_steps" in session), None)
    if noted is None:
        return f"{run}/seed{seed}: not replayed: its record does not say what its first steps gave"
    recipe = experiment.spec(run, seed).recipe
    assert recipe is not None
    last = "on" if recipe.channels_last else "off"
    # What was taken before a record said it.
    before: dict[str, Any] = {"precision": "recipe", "channels_last": last, "fused": "off", "teacher": "plain"}
    speed = Speed(**noted.get("speed", before))
    machine = Machine(workers, noted["threads"], noted["device_batch"], float("inf"), noted["loader"], speed=speed)
    job = _Again(experiment, run, seed, results, machine, into=folder)
    now = _first_session(*settle(job))
    then, steps = noted["first_steps"]["weights_sha256"], noted["first_steps"]["steps"]
    if now["first_steps"]["weights_sha256"] == then:
        return f"{job.name}: its first {steps} steps taken again: the same weights"
    what = f"its first {steps} steps, taken again, give other weights"
    others = [f"{key} {before}, now {after}" for key, before, after in _circumstances(noted, now) if before != after]
    if now["device"] != "cpu" and not recipe.deterministic:
        others.append("a GPU, and a recipe without deterministic: true")
    if others:
        return f"{job.name}: {what}, which proves nothing here ({'; '.join(others)})"
    raise _differs(job, what)


def _first_session(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Take the first steps, and describe them as run.json would."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        fabric = start(job, recipe)
        training = build_training(job, recipe, fabric, StopSignal(), time.monotonic())
        training.train_state.sessions.append(session_of(job, training, fabric))
        take_first_steps(training)
        return training.train_state.sessions[-1]
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _circumstances(noted: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """What may make the same steps round in another way: its name, then and now."""
    yield from ((key, noted.get(key), now[key]) for key in SESSION_KEYS)
    before, after = noted["provenance"], now["provenance"]
    yield from ((key, before.get(key), after[key]) for key in MACHINE_KEYS)
    yield from ((name, before["packages"].get(name), after["packages"][name]) for name in PACKAGES)


def _differs(job: _Again, what: str) -> UserError:
    path = run_folder(job.results, job.experiment.name, job.run, job.seed) / "run.json"
    return UserError(
        f"{path}: {what}, on a machine and with packages of the same kind: what the code computes has changed since; "
        f"make the run again with: {command('train', job.experiment.path, job.run, job.seed, job.results)}"
    )
