"""Measure any weights side by side: files that were not trained here, published ones, and finished runs."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distillery.accelerator import default_device
from distillery.data.arrow import ArrowImages
from distillery.data.manifest import Manifest, load_manifest
from distillery.data.weights import fetched
from distillery.errors import UserError
from distillery.evaluation.metrics import METRICS
from distillery.evaluation.predict import SPLIT, Answers, answer
from distillery.evaluation.profile import count_parameters
from distillery.evaluation.record import read_record
from distillery.evaluation.restore import (
    ReadyNetwork,
    check_classes,
    record_beside,
    restore_folder,
)
from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import check_input, create_model
from distillery.models.normalize import Normalize, resolve_statistics
from distillery.models.pretrained.load import import_weights

# Headings and formats of what else a row says.
ABOUT: dict[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("Model", str),
    "weights": ("Weights", str),
    "parameters": ("Params", "{:,}".format),
    "images": ("Images", "{:,}".format),
}


@dataclass(frozen=True)
class Checkpoint(ReadyNetwork):
    """A network, and what it is called on screens."""

    model: str
    source: str


def evaluate_checkpoints(
    students: Sequence[str],
    teacher: str | None,
    data_folder: Path,
    preprocess: Preprocess | None = None,
    model_args: Mapping[str, Any] | None = None,
    workers: int = 0,
    device: torch.device | None = None,
) -> list[dict[str, Any]]:
    """Measure checkpoints on the validation images of a prepared data set, the teacher first.

    A checkpoint is ``MODEL=WEIGHTS``, with weights as `import_weights` takes them, or the folder of a finished run.
    ``preprocess`` is for weights that do not say themselves how images are prepared; ``device`` is by default the GPU
    where there is one.

    Returns:
        A row a checkpoint: ``model``, ``weights``, ``parameters``, ``images`` and the metrics; those that compare with
        a teacher if there is one (None for itself).

    Raises:
        UserError: a checkpoint cannot be read or does not fit the model, the data set or its images.
    """
    device = device or default_device()
    manifest = load_manifest(data_folder)
    images = ArrowImages(data_folder, manifest, SPLIT)

    def load(item: str) -> Checkpoint:
        return load_checkpoint(item, manifest, device, preprocess, model_args or {})

    # Every file is read before the first is measured: a mistake in the last shows at once.
    loaded = [load(item) for item in ([] if teacher is None else [teacher])] + [load(item) for item in students]
    answers: dict[int, Answers] = {}
    teacher_best_N = None
    if teacher is not None:
        (answers[0],) = answer(loaded[:1], images, len(manifest.classes), workers, device, _label(loaded[:1]))
        teacher_best_N = answers[0].best_N
    # Each way of preparing images is gone through once, for all that want it.
    while left := [place for place in range(len(loaded)) if place not in answers]:
        alike = [place for place in left if loaded[place].preprocess.pixels == loaded[left[0]].preprocess.pixels]
        group = [loaded[place] for place in alike]
        found = answer(group, images, len(manifest.classes), workers, device, _label(group), teacher_best_N)
        answers |= zip(alike, found, strict=True)
    return [_row(checkpoint, answers[place].metrics, teacher is not None) for place, checkpoint in enumerate(loaded)]


def _label(group: Sequence[Checkpoint]) -> str:
    return ", ".join(Path(checkpoint.source).name for checkpoint in group)


def _row(checkpoint: Checkpoint, measured: Mapping[str, float], with_teacher: bool) -> dict[str, Any]:
    if not math.isfinite(measured["nll"]):
        raise UserError(f"{checkpoint.source}: the network's scores are NaN or infinite")
    known = {name: measured.get(name) for name, metric in METRICS.items() if with_teacher or not metric.needs_teacher}
    return {
        "model": checkpoint.model,
        "weights": checkpoint.source,
        "parameters": count_parameters(checkpoint.network),
        "images": int(measured["images"]),
        **known,
    }


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay out what `evaluate_checkpoints` measured for people."""
    from tabulate import tabulate

    columns = [_column(key) for key in rows[0]]
    cells = [
        ["–" if row[key] is None else show(row[key]) for key, (_, show) in zip(row, columns, strict=True)]
        for row in rows
    ]
    align = ["left" if show is str else "right" for _, show in columns]
    heads = [head for head, _ in columns]
    return tabulate(cells, headers=heads, tablefmt="github", colalign=align, disable_numparse=True)


def _column(key: str) -> tuple[str, Callable[[Any], str]]:
    """The heading of a row's value and how it is printed: a metric as the column of its name, if there is one."""
    if key in COLUMNS:
        return COLUMNS[key].heading, COLUMNS[key].show
    return ABOUT.get(key, (key, "{:.3f}".format))


def load_checkpoint(
    item: str, manifest: Manifest, device: torch.device, preprocess: Preprocess | None, model_args: Mapping[str, Any]
) -> Checkpoint:
    """Build a network for a data set with the weights that ``MODEL=WEIGHTS``, or a run's folder, names.

    Raises:
        UserError: it names neither; the weights cannot be read or do not fit; or nothing says how to prepare images.
    """
    if (Path(item) / "run.json").is_file():
        return _load_run(Path(item), manifest, device)
    model, separator, weights = item.partition("=")
    if not separator or not model or not weights:
        raise UserError(
            f"{item}: expected MODEL=WEIGHTS, as cifar_resnet56=weights.pth, or the folder of a finished run"
        )
    weights = fetched(weights)
    check_classes(record_beside(weights), manifest, weights)
    network = create_model(model, len(manifest.classes), **model_args)
    preprocess = import_weights(network, weights, model, model_args) or preprocess
    if preprocess is None:
        raise UserError(
            f"{weights}: does not say how images are prepared for it; add e.g. --size 32 --normalize imagenet"
        )
    mean, std = resolve_statistics(preprocess, manifest.statistics)
    check_input(network, model, preprocess.size, len(manifest.classes))
    return Checkpoint(_ready(network, device), Normalize(mean, std).to(device), preprocess, model, weights)


def _load_run(folder: Path, manifest: Manifest, device: torch.device) -> Checkpoint:
    record = read_record(folder / "run.json")
    classes = record["classes"]
    if classes != len(manifest.classes):
        raise UserError(f"{folder}: a network for {classes} classes, but {manifest.name} has {len(manifest.classes)}")
    check_classes(record, manifest, str(folder))
    run = restore_folder(folder)
    normalize = run.normalize.to(device)
    return Checkpoint(_ready(run.network, device), normalize, run.preprocess, run.record["spec"]["model"], str(folder))


def _ready(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    return network.to(device).eval().requires_grad_(False)
