"""Measure a finished run on the validation images."""

import math
import sys
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from distillery.data.arrow import ArrowImages
from distillery.data.loader import eval_loader
from distillery.data.manifest import load_manifest
from distillery.data.transforms import eval_transform
from distillery.errors import UserError
from distillery.evaluation.metrics import METRICS, evaluate_model
from distillery.evaluation.restore import ReadyNetwork, default_device, restore_run
from distillery.experiment import Experiment
from distillery.experiment.ledger import MEASURED
from distillery.experiment.schema.recipe import Preprocess
from distillery.paths import dataset_folder, run_folder
from distillery.reporting.verdict import missed_top1
from distillery.results import record_sha256, write_sealed

SPLIT: Final = "val"
BATCH = 256


def evaluate_run(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int = 0, device: torch.device | None = None
) -> dict[str, Any]:
    """Evaluate a trained or imported run, and its agreement with its teacher, and write metrics.json beside it.

    Each network sees the images prepared as its own run.json says.

    Raises:
        UserError: the run, its teacher or the data set is missing, damaged or stale; or the network's scores are not
            finite.
    """
    metrics = measure_run(experiment, run, seed, results, workers, device)
    write_sealed(run_folder(results, experiment.name, run, seed) / "metrics.json", metrics)
    return metrics


def measure_run(
    experiment: Experiment, run: str, seed: int, results: Path, workers: int = 0, device: torch.device | None = None
) -> dict[str, Any]:
    """What `evaluate_run` writes.

    Raises:
        UserError: as there.
    """
    device = device or default_device()
    data_folder = dataset_folder(results, experiment.config.dataset)
    manifest = load_manifest(data_folder)
    finished = restore_run(experiment, run, seed, results, device, manifest)
    teacher, teacher_name = None, experiment.teacher(run)
    if teacher_name is not None:
        teacher = restore_run(experiment, teacher_name, experiment.seeds(teacher_name)[0], results, device, manifest)

    images = ArrowImages(data_folder, manifest, SPLIT)
    measured = measure(finished, teacher, images, len(manifest.classes), workers, device, f"{run}/seed{seed}")
    if not math.isfinite(measured["nll"]):
        raise UserError(f"{finished.weights}: the network's scores are NaN or infinite; train it again")
    if finished.record["selection"] == "imported" and not experiment.rehearsal:
        images_seen = int(measured["images"])
        missed = missed_top1(experiment.published, run, measured["top1"], images_seen, finished.record)
        if missed is not None:
            print(f"warning: {missed}", file=sys.stderr)
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


def measure(
    student: ReadyNetwork,
    teacher: ReadyNetwork | None,
    images: ArrowImages,
    num_classes: int,
    workers: int,
    device: torch.device,
    label: str,
) -> dict[str, float]:
    """Measure a network, and its agreement with a teacher, on images that each sees prepared as it wants them."""
    loader = loader_of(images, student.preprocess, workers, device)
    return evaluate_model(
        student.predict,
        tqdm(loader, desc=label, unit="batch", disable=None, leave=False),
        num_classes,
        device,
        teacher_predict=None if teacher is None else teacher.predict,
        # The images are decoded a second time only where the teacher wants another size or crop than the student.
        teacher_loader=None
        if teacher is None or teacher.preprocess.pixels == student.preprocess.pixels
        else loader_of(images, teacher.preprocess, workers, device),
    )


def loader_of(images: ArrowImages, preprocess: Preprocess, workers: int, device: torch.device) -> Any:  # noqa: ANN401
    """Load validation images as one network wants them prepared."""
    return eval_loader(
        images,
        eval_transform(preprocess),
        batch=BATCH,
        workers=workers,
        world_size=1,
        rank=0,
        pin_memory=device.type == "cuda",
    )
