"""Make one run of an experiment: train it, or import its weights, and leave the results whole."""

import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import torch
from lightning_fabric import Fabric

from distillery.accelerator import gpu_name
from distillery.cluster.run_lock import RunLock, locked
from distillery.cluster.signals import Interrupted, StopSignal, end_children
from distillery.errors import UserError, located
from distillery.evaluation.evaluate import measure_for_later
from distillery.experiment.schema.objective import TERMS
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.models import check_input
from distillery.models.normalize import resolve_statistics
from distillery.models.weights import load_weights, save_weights
from distillery.paths import diverged_folder
from distillery.provenance import provenance
from distillery.results import file_hash, try_json, write_sealed
from distillery.training.build import build_training
from distillery.training.devices import settle, start_devices
from distillery.training.initial import initial_weights, network_of_weights
from distillery.training.inputs import loader_name
from distillery.training.job import Job
from distillery.training.loop import Diverged, Training, chosen_weights, fit, note_session, restore
from distillery.training.optim import hyper_parameters, learning_rate, total_epochs


def make_run(job: Job, stop: StopSignal | None = None) -> None:
    """Train or import a run into its results folder; ``stop`` has listened for signals already, and goes on listening.

    Raises:
        UserError: something it needs is missing or does not fit.
        Stopped: a signal asked it to stop; what it had done is saved and the next call continues.
    """
    if job.spec.recipe is None:
        _import_weights(job)
        return
    own = StopSignal()
    try:
        with locked(job.lock) as lock:
            _train(*settle(job), lock, stop or own)
    finally:
        own.remove()


def _import_weights(job: Job) -> None:
    source = initial_weights(job)
    assert source is not None
    network, taken, found = network_of_weights(job, source)
    preprocess = job.spec.preprocess or source.preprocess or taken.preprocess
    if preprocess is None:
        raise UserError(
            f"{job.where}.preprocess: missing; {source.file} does not say how its images were prepared; "
            "write e.g. preprocess: {size: 32, normalize: imagenet}"
        )
    with located(job.where):
        check_input(network, job.spec.model, preprocess.size, len(job.manifest.classes) * job.spec.has_classifier)
    job.folder.mkdir(parents=True, exist_ok=True)
    save_weights(network, job.folder / "weights.safetensors")
    facts: dict[str, Any] = {
        "selection": "imported",
        "selection_split": None,
        "epoch": None,
        "weights_kind": "ema" if taken.averaged else "raw",
        "weights_sha256": file_hash(job.folder / "weights.safetensors"),
    }
    if taken.facts:
        facts |= {"weights_file": taken.facts}
    if not job.spec.has_classifier:
        facts |= {"classes": 0, "class_names": []}
    if found is not None:
        facts |= {"weights_classes": found.total, "unknown_classes": found.unknown}
    write_sealed(job.folder / "run.json", _facts(job, preprocess) | facts | {"provenance": provenance()})


def _train(job: Job, recipe: Recipe, lock: RunLock | None, stop: StopSignal) -> None:
    began = time.monotonic()
    stop.install()
    fabric = start(job, recipe)
    stop.connect(fabric)
    if fabric.broadcast(lock is not None and lock.waited and _is_complete(job)):
        fabric.print(f"{job.name}: finished by another process while this one waited for it")
        return
    training = build_training(job, recipe, fabric, stop, began)
    found = training.checkpoints.load()
    if found is not None:
        restore(training, *found)
        train_state = training.train_state
        fabric.print(f"{job.name}: continuing after epoch {train_state.epoch}, step {train_state.step}")
    training.train_state.sessions.append(session_of(job, training, fabric))
    try:
        fit(training)
    except BaseException as error:
        training.metric_logger.trackers.end(whole=False)
        if not isinstance(error, Diverged):
            raise
        training.metric_logger.end()
        kept = _keep_curves(job) if fabric.is_global_zero else ""
        raise UserError(f"{error}{kept}") from None
    note_session(training)
    if fabric.is_global_zero:
        assert lock is not None
        lock.check()
        _write_results(job, recipe, training)
        training.metric_logger.trackers.end()
        # Snakemake removes the results of a job that was killed, and Slurm may start one again that was preempted: it
        # then continues from its checkpoint.
        if not job.machine.measure or fabric.world_size > 1 or _measure(job, training, stop):
            training.checkpoints.remove()
    fabric.barrier()


def _measure(job: Job, training: Training, stop: StopSignal) -> bool:
    """Measure the finished network for its evaluation, which does it if this fails; False if a signal has ended it."""
    workers = 0 if loader_name(training.train_loader) == "memory" else job.machine.workers
    try:
        with stop.interrupting():
            measure_for_later(job.experiment, job.run, job.seed, job.results, workers, training.fabric.device)
    except Interrupted:
        end_children()
        return False
    except Exception as error:
        print(f"{job.name}: not measured: {' '.join(str(error).split())}", file=sys.stderr)
    return True


def start(job: Job, recipe: Recipe) -> Fabric:
    """Join the run's devices."""
    assert job.spec.objective is not None
    # Terms that look at features alone leave the student's last layer without a gradient, heads its second one, and
    # terms of plugins whatever they like, also of their own.
    objective = job.spec.objective
    unused = (
        "logits" not in objective.needs().student or bool(objective.heads()) or not {*objective.terms()} <= {*TERMS}
    )
    return start_devices(recipe, job.machine.threads, unused_parameters=unused, speed=job.machine.speed)


def _keep_curves(job: Job) -> str:
    """Copy a diverged run's history and TensorBoard to where nothing removes them, and say where; "" where it fails."""
    kept = diverged_folder(job.results, job.experiment.name, job.run, job.seed)
    with suppress(OSError):
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(job.folder / "tensorboard", kept / "tensorboard")
        shutil.copy(job.folder / "history.csv", kept)
        return f"; its curves are kept in {kept}"
    return ""


def _is_complete(job: Job) -> bool:
    """Whether the results of this very configuration are all there; the record is written last."""
    record = try_json(job.folder / "run.json") or {}
    same = (record.get("digest"), record.get("manifest_digest")) == (job.spec.digest, job.manifest.digest)
    files = ("weights.safetensors", "history.csv")
    return (
        same
        and all((job.folder / name).exists() for name in files)
        and any((job.folder / "tensorboard").glob("events.*"))
    )


def session_of(job: Job, training: Training, fabric: Fabric) -> dict[str, Any]:
    """What one session of a run was made with; a run that was stopped has several."""
    return {
        "from_epoch": training.train_state.epoch,
        "from_step": training.train_state.step,
        "device": "cpu" if fabric.device.type == "cpu" else gpu_name(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
        "precision": fabric.strategy.precision.precision,
        "speed": asdict(training.speed),
        "loader": loader_name(training.train_loader),
        **({} if job.machine.cache is None else {"cache": str(job.machine.cache)}),
        "device_batch": training.recipe.batch // fabric.world_size // training.accumulation,
        "accumulation": training.accumulation,
        "provenance": provenance(),
    }


def _write_results(job: Job, recipe: Recipe, training: Training) -> None:
    """Write the weights and, last of all, the record that says the run is complete."""
    train_state = training.train_state
    if recipe.selection == "best":
        epoch = train_state.best_epoch
        kind, network = chosen_weights(training, train_state.history[epoch - 1])
        load_weights(network, training.checkpoints.best_path(epoch))
    else:
        epoch = len(train_state.history)
        kind, network = chosen_weights(training, train_state.history[-1])
    save_weights(network, job.folder / "weights.safetensors")
    write_sealed(
        job.folder / "run.json",
        _facts(job, recipe.preprocess)
        | ({} if training.head is None else {"head": training.head})
        | ({} if training.scores is None else {"teacher": training.scores})
        | {
            "selection": recipe.selection,
            "selection_split": job.manifest.selection_split if _chooses(recipe) else None,
            "epoch": epoch,
            "weights_kind": kind,
            "weights_sha256": file_hash(job.folder / "weights.safetensors"),
            "history_sha256": file_hash(job.folder / "history.csv"),
            "effective": {
                "batch": recipe.batch,
                "epochs": total_epochs(recipe),
                "steps_per_epoch": training.batches.steps,
                "first_learning_rate": learning_rate(recipe, 0, 0, training.batches.steps),
                "base_learning_rate": recipe.optimizer.lr,
                "optimizer": hyper_parameters(training.optimizer),
            },
            "sessions": train_state.sessions,
            "alarms": train_state.alarms,
        }
        | ({"skipped": train_state.skipped} if recipe.on_nan == "skip" else {}),
    )


def _chooses(recipe: Recipe) -> bool:
    """Whether measurements decide which weights are kept: those of an epoch, or the averaged ones."""
    return recipe.selection == "best" or recipe.ema is not None


def _facts(job: Job, preprocess: Preprocess) -> dict[str, Any]:
    """What is true of a run however it was made."""
    with located(job.where):
        mean, std = resolve_statistics(preprocess, job.manifest.statistics)
    return {
        "run": job.run,
        "seed": job.seed,
        "digest": job.spec.digest,
        "spec": job.spec.ledger,
        "dataset": job.spec.dataset,
        "manifest_digest": job.manifest.digest,
        "classes": len(job.manifest.classes),
        "class_names": list(job.manifest.classes),
        "preprocess": preprocess.model_dump(mode="json"),
        "statistics": {"mean": list(mean), "std": list(std)},
    }
