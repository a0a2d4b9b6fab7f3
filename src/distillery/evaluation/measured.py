"""What a training has measured of its own network, kept for the evaluation that follows; without torch."""

from pathlib import Path
from typing import Any

from distillery.data.manifest import load_manifest
from distillery.errors import UserError
from distillery.evaluation.record import checked_record
from distillery.experiment import Experiment
from distillery.experiment.ledger import MEASURED
from distillery.paths import dataset_folder, run_folder
from distillery.results import SEAL, file_hash, record_sha256, try_json, write_sealed

FILE = "measured.json"


def decides(experiment: Experiment, run: str, seed: int, results: Path) -> dict[str, Any]:
    """What decides a run's metrics, by what lies there now: the network, the images, its teacher, and the measuring.

    Raises:
        UserError: something of it is missing, damaged or stale.
    """
    manifest = load_manifest(dataset_folder(results, experiment.config.dataset))
    teacher = experiment.teacher(run)
    networks = [(run, seed)] if teacher is None else [(run, seed), (teacher, experiment.seeds(teacher)[0])]
    found: dict[str, Any] = {"evaluation": MEASURED, "manifest_digest": manifest.digest, "networks": []}
    for name, number in networks:
        record = checked_record(experiment, name, number, results, manifest)
        weights = run_folder(results, experiment.name, name, number) / "weights.safetensors"
        sums = {"weights_sha256": file_hash(weights), "record_sha256": record_sha256(record)}
        found["networks"].append({"run": name, "seed": number, "digest": record["digest"]} | sums)
    return found


def keep_measured(
    experiment: Experiment, run: str, seed: int, results: Path, decided: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Keep a run's metrics beside its weights, with what decided them."""
    write_sealed(_path(experiment, run, seed, results), {"decided": decided, "metrics": metrics})


def take_measured(experiment: Experiment, run: str, seed: int, results: Path) -> dict[str, Any] | None:
    """Make metrics.json of what a run's training has measured; None if it left nothing, or not of what lies there now.

    What it left is used once, or not at all.
    """
    path = _path(experiment, run, seed, results)
    kept = try_json(path) or {}
    path.unlink(missing_ok=True)
    try:
        if SEAL not in kept or kept.get("decided") != decides(experiment, run, seed, results):
            return None
    except (UserError, OSError):
        return None  # who measures says it
    metrics: dict[str, Any] = kept["metrics"]
    write_sealed(path.with_name("metrics.json"), metrics)
    return metrics


def _path(experiment: Experiment, run: str, seed: int, results: Path) -> Path:
    return run_folder(results, experiment.name, run, seed) / FILE
