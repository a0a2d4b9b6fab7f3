"""Take a finished run from the results folder, ready to predict, whether it was trained or imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distillery.data.manifest import Manifest
from distillery.errors import UserError
from distillery.evaluation.record import checked_record, read_record
from distillery.experiment import Experiment
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import check_input, create_model
from distillery.models.composite import with_head
from distillery.models.normalize import Normalize
from distillery.models.weights import load_weights
from distillery.paths import run_folder
from distillery.results import check_weights, file_hash, try_json


@dataclass(frozen=True)
class ReadyNetwork:
    """A network with its weights, in evaluation mode, and how images must be prepared for it."""

    network: nn.Module
    normalize: Normalize
    preprocess: Preprocess

    def predict(self, images: Tensor) -> Tensor:
        """Return logits (B, C) for uint8 images (B, 3, H, W)."""
        logits_BC: Tensor = self.network(self.normalize(images))
        return logits_BC


@dataclass(frozen=True)
class FinishedRun(ReadyNetwork):
    """A run's network, and what is on record of it."""

    record: dict[str, Any]  # run.json
    weights: Path

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights file, 64 hex digits."""
        return file_hash(self.weights)


def restore_run(
    experiment: Experiment, run: str, seed: int, results: Path, device: torch.device, manifest: Manifest | None = None
) -> FinishedRun:
    """Read run.json and weights.safetensors of a run; with ``manifest``, check that this data set made it.

    Raises:
        UserError: the run was not made yet, was made from another configuration or other data, or is damaged.
    """
    spec = experiment.spec(run, seed)
    folder = run_folder(results, experiment.name, run, seed)
    record = checked_record(experiment, run, seed, results, manifest)
    preprocess = Preprocess.model_validate(record["preprocess"])
    network = create_model(spec.model, record["classes"], **spec.model_args)
    network = with_head(network, record, preprocess.size, spec.model)
    load_weights(network, folder / "weights.safetensors")
    check_input(network, spec.model, preprocess.size, record["classes"])
    statistics = record["statistics"]
    return FinishedRun(
        network=network.to(device).eval().requires_grad_(False),
        normalize=Normalize(statistics["mean"], statistics["std"]).to(device),
        preprocess=preprocess,
        record=record,
        weights=folder / "weights.safetensors",
    )


def restore_folder(folder: Path, weights: Path | None = None) -> FinishedRun:
    """Read a run from its folder alone, on the CPU; ``weights`` are others than those beside its run.json.

    Raises:
        UserError: it was not made yet, or is damaged.
    """
    record = read_record(folder / "run.json")
    spec, preprocess = record["spec"], Preprocess.model_validate(record["preprocess"])
    network = create_model(spec["model"], record["classes"], **spec.get("model_args", {}))
    network = with_head(network, record, preprocess.size, spec["model"])
    if weights is None:
        weights = folder / "weights.safetensors"
        check_weights(weights, record, "distillery train")
    load_weights(network, weights)
    normalize = Normalize(record["statistics"]["mean"], record["statistics"]["std"])
    return FinishedRun(network.eval().requires_grad_(False), normalize, preprocess, record, weights)


def check_classes(record: Mapping[str, Any], manifest: Manifest, source: str, cure: str = "") -> None:
    """See that weights were made for the classes of a data set, in their order, where run.json (``record``) says it.

    Raises:
        UserError: they were not; ``cure`` ends the line.
    """
    theirs, ours = tuple(record.get("class_names") or manifest.classes), manifest.classes
    if theirs == ours:
        return
    if sorted(theirs) == sorted(ours):
        reason = "its classes are in another order"
    else:
        reason = f"its classes are others ({len(theirs)}, here {len(ours)})"
    place = next((place for place, pair in enumerate(zip(theirs, ours, strict=False)) if pair[0] != pair[1]), None)
    first = "" if place is None else f": number {place} is {theirs[place]!r}, but {ours[place]!r} in {manifest.name}"
    raise UserError(f"{source}: {reason}{first}{cure}")


def record_beside(weights: str) -> dict[str, Any]:
    """The run.json beside a file that is a run's weights; empty if it is another file.

    Raises:
        UserError: it is about other weights.
    """
    path = Path(weights).expanduser()
    record = (try_json(path.with_name("run.json")) or {}) if path.name == "weights.safetensors" else {}
    check_weights(path, record, "distillery train")
    return record
