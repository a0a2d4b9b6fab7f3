"""Measure a finished run on the validation images."""

import math
import sys
from pathlib import Path
from typing import Any

import torch

from distillery.accelerator import default_device
from distillery.data.arrow import ArrowImages
from distillery.data.manifest import load_manifest
from distillery.errors import UserError, printable
from distillery.evaluation.measured import decides, keep_measured
from distillery.evaluation.metrics import METRICS
from distillery.evaluation.predict import SPLIT, answer, keep_classes, teachers_classes
from distillery.evaluation.restore import restore_run
from distillery.experiment import Experiment
from distillery.experiment.ledger import MEASURED
from distillery.models import has_classifier
from distillery.paths import dataset_folder, run_folder
from distillery.reporting.verdict import missed_top1
from distillery.results import record_sha256, write_sealed


def evaluate_run(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int = 0, device: torch.device | None = None
) -> dict[str, Any]:
    """Evaluate a trained or imported run, and its agreement with its teacher, and write metrics.json beside it.

    Each network sees the images prepared as its own run.json says. What a teacher says of them is kept beside its
    metrics.json, by its own evaluation or the first of a student, so that it is asked once.

    Raises:
        UserError: the run, its teacher or the data set is missing, damaged or stale; or the network's scores are not
            finite.
    """
    metrics = measure_run(experiment, run, seed, results, workers, device, keep=True)
    write_sealed(run_folder(results, experiment.name, run, seed) / "metrics.json", metrics)
    return metrics


def measure_for_later(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int, device: torch.device
) -> None:
    """Measure a run in the process that has trained it, as ``evaluate_run`` would, and keep it for that evaluation.

    Raises:
        UserError: as there.
    """
    # Before measuring: what is replaced meanwhile is then not what was measured.
    decided = decides(experiment, run, seed, results)
    # As a process of its own has them.
    torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = False
    metrics = measure_run(experiment, run, seed, results, workers, device, keep=True)
    keep_measured(experiment, run, seed, results, decided, metrics)


def measure_run(
    experiment: Experiment,
    run: str,
    seed: int,
    results: Path,
    workers: int = 0,
    device: torch.device | None = None,
    *,
    keep: bool = False,
) -> dict[str, Any]:
    """What `evaluate_run` writes into metrics.json; with ``keep``, classes by a teacher are kept.

    Raises:
        UserError: as there.
    """
    device = device or default_device()
    data_folder = dataset_folder(results, experiment.config.dataset)
    manifest = load_manifest(data_folder)
    finished = restore_run(experiment, run, seed, results, device, manifest)
    images = ArrowImages(data_folder, manifest, SPLIT)
    teacher_name, teacher_best_N = experiment.teacher(run), None
    if teacher_name is not None and experiment.spec(teacher_name).has_classifier:
        teacher_best_N = teachers_classes(
            experiment, teacher_name, results, manifest, images, workers, device, keep=keep
        )
    label = f"{run}/seed{seed}"
    measured: dict[str, float] = {"images": len(images)}
    if has_classifier(finished.network):
        ((measured, best_N),) = answer(
            [finished], images, len(manifest.classes), workers, device, label, teacher_best_N
        )
        if not math.isfinite(measured["nll"]):
            raise UserError(f"{finished.weights}: the network's scores are NaN or infinite; train it again")
        if keep and run in experiment.teachers and seed == experiment.seeds(run)[0]:
            keep_classes(experiment, run, seed, results, finished.record, best_N)
    if "top1" in measured and finished.record["selection"] == "imported" and not experiment.rehearsal:
        images_seen = int(measured["images"])
        missed = missed_top1(experiment.published, run, measured["top1"], images_seen, finished.record)
        if missed is not None:
            print(printable(f"warning: {missed}"), file=sys.stderr)
    return {
        "run": run,
        "seed": seed,
        "split": SPLIT,
        "images": int(measured["images"]),
        "selection": finished.record["selection"],
        "selection_split": finished.record.get("selection_split"),
        "epoch": finished.record["epoch"],
        **{name: measured.get(name) for name in METRICS},
        "teacher": teacher_name,
        "digest": finished.record["digest"],
        "evaluation": MEASURED,
        "weights_sha256": finished.weights_sha256,
        "record_sha256": record_sha256(finished.record),
    }
