"""What networks say of each validation image: the images are gone through once, for however many networks.

N images, B batch, C classes.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from distillery.accelerator import default_device
from distillery.data.arrow import ArrowImages
from distillery.data.loader import Batch, eval_loader
from distillery.data.manifest import Manifest
from distillery.data.transforms import eval_transform
from distillery.errors import UserError
from distillery.evaluation.metrics import Tally, on
from distillery.evaluation.record import checked_record
from distillery.evaluation.restore import ReadyNetwork, restore_run
from distillery.experiment import Experiment
from distillery.experiment.ledger import EVALUATION
from distillery.experiment.schema.recipe import Preprocess
from distillery.paths import dataset_folder, run_folder
from distillery.results import file_hash, record_sha256, try_json, write_sealed

SPLIT: Final = "val"
BATCH = 256
PREDICTIONS = "predictions.json"
SECONDS_BETWEEN_LINES = 30.0


class Answers(NamedTuple):
    """A network's metrics, and its most probable class for each image (N,), in the order of the split."""

    metrics: dict[str, float]
    best_N: Tensor


@torch.no_grad()
def answer(
    networks: Sequence[ReadyNetwork],
    images: ArrowImages,
    num_classes: int,
    workers: int,
    device: torch.device,
    label: str,
    teacher_best_N: Tensor | None = None,
) -> list[Answers]:
    """Measure networks that see images prepared alike, in one pass; with a teacher's classes (N,), against it."""
    tallies = [Tally(num_classes, device, teacher_best_N is not None) for _ in networks]
    best = [torch.zeros(len(images), dtype=torch.long, device=device) for _ in networks]
    teacher_best_N = None if teacher_best_N is None else teacher_best_N.to(device)
    for batch in batches(images, networks[0].preprocess, workers, device, label):
        pixels, labels_B, ids_B = (on(part, device) for part in (batch.images, batch.labels, batch.indices))
        teacher_best_B = None if teacher_best_N is None else teacher_best_N[ids_B]
        for network, tally, best_N in zip(networks, tallies, best, strict=True):
            best_N[ids_B] = tally.add(network.predict(pixels), labels_B, teacher_best_B)
    return [Answers(tally.result(), best_N.cpu()) for tally, best_N in zip(tallies, best, strict=True)]


def batches(
    images: ArrowImages, preprocess: Preprocess, workers: int, device: torch.device, label: str
) -> Iterator[Batch]:
    """All images once, prepared for evaluation; ``label`` is what progress is shown of."""
    loader = eval_loader(
        images,
        eval_transform(preprocess),
        batch=BATCH,
        workers=workers,
        world_size=1,
        rank=0,
        pin_memory=device.type == "cuda",
    )
    return _shown(loader, label, len(images))


def _shown(loader: Any, label: str, images: int) -> Iterator[Batch]:  # noqa: ANN401
    """The batches, with a bar on a terminal, and else a line every so many seconds."""
    said, done = time.monotonic(), 0
    interactive = sys.stderr.isatty()
    for batch in tqdm(loader, desc=label, unit="batch", disable=not interactive, leave=False):
        yield batch
        done += len(batch.indices)
        if not interactive and time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{label}: {done:,} of {images:,} images", file=sys.stderr, flush=True)


def teachers_classes(
    experiment: Experiment,
    run: str,
    results: Path,
    manifest: Manifest,
    images: ArrowImages,
    workers: int,
    device: torch.device,
    *,
    keep: bool,
) -> Tensor:
    """The most probable class of each validation image by a teacher (N,): as kept beside its metrics, or anew.

    With ``keep``, what was found anew is kept: the teacher runs once, however many students are measured.

    Raises:
        UserError: the teacher is missing, damaged or stale.
    """
    seed = experiment.seeds(run)[0]
    record = checked_record(experiment, run, seed, results, manifest)
    kept = try_json(_path(experiment, run, seed, results)) or {}
    expected = _about(experiment, run, seed, results, record)
    if all(kept.get(key) == value for key, value in expected.items()):
        return torch.tensor([int(number) for number in kept["classes"].split()])
    teacher = restore_run(experiment, run, seed, results, device, manifest)
    label = f"{run}/seed{seed}, the teacher"
    (answers,) = answer([teacher], images, len(manifest.classes), workers, device, label)
    if keep:
        keep_classes(experiment, run, seed, results, record, answers.best_N)
    return answers.best_N


def keep_classes(
    experiment: Experiment, run: str, seed: int, results: Path, record: dict[str, Any], best_N: Tensor
) -> None:
    """Keep what a teacher says of the validation images beside its metrics, for the evaluation of its students."""
    classes = " ".join(map(str, best_N.tolist()))
    # Who may not write there asks the teacher again.
    with suppress(UserError, OSError):
        write_sealed(
            _path(experiment, run, seed, results),
            _about(experiment, run, seed, results, record) | {"split": SPLIT, "classes": classes},
        )


def _path(experiment: Experiment, run: str, seed: int, results: Path) -> Path:
    return run_folder(results, experiment.name, run, seed) / PREDICTIONS


def _about(experiment: Experiment, run: str, seed: int, results: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What decides a teacher's predictions."""
    weights = run_folder(results, experiment.name, run, seed) / "weights.safetensors"
    return {
        "run": run,
        "seed": seed,
        "weights_sha256": record.get("weights_sha256") or file_hash(weights),
        "record_sha256": record_sha256(record),
        "manifest_digest": record["manifest_digest"],
        "evaluation": EVALUATION,
    }


def predict_run(
    experiment: Experiment, run: str, seed: int, results: Path, manifest: Manifest, workers: int = 0
) -> NDArray[np.int64]:
    """The most probable class of each validation image (N,), in the order of the split.

    Raises:
        UserError: the run is missing, damaged or stale.
    """
    device = default_device()
    finished = restore_run(experiment, run, seed, results, device, manifest)
    images = ArrowImages(dataset_folder(results, experiment.config.dataset), manifest, SPLIT)
    (answers,) = answer([finished], images, len(manifest.classes), workers, device, f"{run}/seed{seed}")
    predicted_N: NDArray[np.int64] = answers.best_N.numpy()
    return predicted_N


def validation_labels(experiment: Experiment, results: Path, manifest: Manifest) -> NDArray[np.int64]:
    """The class of each validation image (N,)."""
    images = ArrowImages(dataset_folder(results, experiment.config.dataset), manifest, SPLIT)
    return np.asarray(images.labels, dtype=np.int64)
