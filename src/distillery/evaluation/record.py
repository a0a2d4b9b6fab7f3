"""The run.json of a finished run, read and checked; without torch, so that those who only look answer at once."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from distillery.data.manifest import Manifest
from distillery.experiment import Experiment
from distillery.experiment.reading import validate
from distillery.experiment.schema.block import Statistics
from distillery.experiment.schema.recipe import Preprocess
from distillery.paths import run_folder
from distillery.results import check_weights, command, read_json, unusable


def checked_record(
    experiment: Experiment, run: str, seed: int, results: Path, manifest: Manifest | None = None
) -> dict[str, Any]:
    """Read run.json of a run, and see that its weights are those that it is about; with ``manifest``, its data too.

    Raises:
        UserError: as for ``restore_run``.
    """
    folder = run_folder(results, experiment.name, run, seed)
    record = finished_record(experiment, run, seed, results)
    if manifest is not None and record["manifest_digest"] != manifest.digest:
        raise unusable(
            folder / "run.json",
            f"made from other images than {manifest.name} now holds (manifest digest "
            f"{record['manifest_digest'][:16]}, now {manifest.digest[:16]})",
            command("train", experiment.path, run, seed, results),
        )
    check_weights(folder / "weights.safetensors", record, command("train", experiment.path, run, seed, results))
    return record


def finished_record(experiment: Experiment, run: str, seed: int, results: Path) -> dict[str, Any]:
    """Read run.json of a run.

    Raises:
        UserError: the run was not made yet or was made from another configuration, or the file is damaged.
    """
    spec = experiment.spec(run, seed)
    made_by = command("train", experiment.path, run, seed, results)
    path = run_folder(results, experiment.name, run, seed) / "run.json"
    record = read_record(path, made_by)
    if record["digest"] != spec.digest:
        raise unusable(
            path,
            f"made from another configuration (digest {record['digest']}, but {experiment.path} now gives "
            f"{spec.digest})",
            made_by,
        )
    return record


class _Record(BaseModel):
    """What of a run.json is used, and of what kind it is."""

    digest: str
    spec: dict[str, Any]
    manifest_digest: str
    classes: Annotated[int, Field(strict=True, ge=0)]
    preprocess: Preprocess
    statistics: Statistics
    class_names: list[str] | None = None
    unknown_classes: list[str] = []


def read_record(path: Path, made_by: str = "distillery train") -> dict[str, Any]:
    """Read a run.json; ``made_by`` is the command that makes it.

    Raises:
        UserError: it is missing, damaged or incomplete.
    """
    needed = ("digest", "spec", "manifest_digest", "classes", "preprocess", "statistics", "selection", "epoch")
    record = read_json(path, made_by, needed)
    validate(_Record, record, path)
    return record
