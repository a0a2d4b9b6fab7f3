"""Look again at every seal of an experiment's results: shards, weights, histories, records, measurements and tables."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from distillery.data.manifest import FILE_NAME, load_manifest, read_manifest
from distillery.errors import UserError
from distillery.evaluation.evaluate import measure_run
from distillery.evaluation.predict import PREDICTIONS
from distillery.evaluation.probe import measure_probes
from distillery.evaluation.record import read_record
from distillery.experiment import Experiment
from distillery.experiment.reading import validate
from distillery.experiment.schema.columns import PROBES
from distillery.paths import dataset_folder, profile_path, records_list, run_folder, table_seal
from distillery.results import check_weights, command, file_hash, read_json, record_sha256, unusable


class _Seals(BaseModel):
    """What files were when they were written, and what they were made from: SHA-256 by path under the results."""

    files: dict[str, str]
    made_from: dict[str, str]


def verify_experiment(experiment: Experiment, results: Path, *, rerun: bool = False) -> Iterator[tuple[Path, str]]:
    """Look at each file that there is and yield it with what is wrong with it: "" if nothing, or nothing can be known.

    Runs that were not made yet are passed over. With ``rerun``, networks are measured again. Of records that were kept
    by themselves, every one must be there, and weights and images need not be.
    """
    listed, seen = records_list(results, experiment.name), set[Path]()
    kept = listed.exists()
    for path, fault in _verify_results(experiment, results, rerun, kept):
        seen.add(path)
        yield path, fault
    if kept:
        yield from ((path, fault) for path, fault in _verify_list(listed, results) if fault or path not in seen)


def _verify_list(listed: Path, results: Path) -> Iterator[tuple[Path, str]]:
    made_by = f"git checkout {listed.parent}"
    try:
        files = validate(_Seals, read_json(listed, made_by), listed).files
    except UserError as error:
        yield listed, str(error)
        return
    yield listed, ""
    for name, sha256 in files.items():
        yield results / name, _fault(_check_hash, results / name, sha256, made_by)


def _verify_results(experiment: Experiment, results: Path, rerun: bool, kept: bool) -> Iterator[tuple[Path, str]]:
    yield from _verify_data(dataset_folder(results, experiment.config.dataset), kept)
    for run, seed in experiment.members():
        folder = run_folder(results, experiment.name, run, seed)
        if (folder / "run.json").exists():
            yield from _verify_run(experiment, run, seed, results, folder, rerun, kept)
    for run in experiment.config.runs:
        path = profile_path(results, experiment.name, run)
        if path.exists():
            yield path, _fault(read_json, path, command("profile", experiment.path, run, None, results))
    for table in (None, *experiment.config.tables):
        path = table_seal(results, experiment.name, table)
        if path.exists():
            yield from _verify_table(path, results, command("tabulate", experiment.path, table or "", None, results))


def _verify_table(seal: Path, results: Path, made_by: str) -> Iterator[tuple[Path, str]]:
    """A table's files, which must be what they were, and made from what lies there now."""
    try:
        parts = validate(_Seals, read_json(seal, made_by), seal)
    except UserError as error:
        yield seal, str(error)
        return
    newer = [name for name, sha256 in parts.made_from.items() if _fault(_check_hash, results / name, sha256, "")]
    older = f"older than {results / newer[0]}, which it was made from" if newer else ""
    yield seal, ""
    for name, sha256 in parts.files.items():
        path = results / name
        yield path, _fault(_check_hash, path, sha256, made_by) or (str(unusable(path, older, made_by)) if newer else "")


def _verify_data(folder: Path, kept: bool) -> Iterator[tuple[Path, str]]:
    if not (folder / FILE_NAME).exists():
        return
    try:
        manifest = read_manifest(folder) if kept else load_manifest(folder, hash_new_shards=False)
    except UserError as error:
        yield folder / FILE_NAME, str(error)
        return
    yield folder / FILE_NAME, ""
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        path, made_by = folder / shard.file, f"distillery prepare {folder.name}"
        if path.exists() or not kept:
            yield path, _fault(_check_hash, path, shard.sha256, made_by)


def _verify_run(
    experiment: Experiment, run: str, seed: int, results: Path, folder: Path, rerun: bool, kept: bool
) -> Iterator[tuple[Path, str]]:
    made_by = command("train", experiment.path, run, seed, results)
    try:
        record = read_record(folder / "run.json", made_by)
    except UserError as error:
        yield folder / "run.json", str(error)
        return
    yield folder / "run.json", ""
    weights, history, metrics = (folder / name for name in ("weights.safetensors", "history.csv", "metrics.json"))
    again = rerun and (weights.exists() or not kept)
    if weights.exists() or not kept:
        yield weights, _fault(_check_hash, weights, record.get("weights_sha256"), made_by)
    if "history_sha256" in record:
        yield history, _fault(_check_hash, history, record["history_sha256"], made_by)
    if (folder / PREDICTIONS).exists():
        evaluated_by = command("evaluate", experiment.path, run, seed, results)
        yield folder / PREDICTIONS, _fault(read_json, folder / PREDICTIONS, evaluated_by)
    for path, measure in ((metrics, measure_run), (folder / PROBES, measure_probes)):
        if path.exists():
            yield path, _fault(_check_metrics, experiment, run, seed, results, path, record, measure if again else None)


def _check_metrics(
    experiment: Experiment,
    run: str,
    seed: int,
    results: Path,
    path: Path,
    record: dict[str, Any],
    measure: Callable[..., dict[str, Any]] | None,
) -> None:
    made_by = command("probe" if path.name == PROBES else "evaluate", experiment.path, run, seed, results)
    metrics = read_json(path, made_by)
    if metrics.get("record_sha256") not in (None, record_sha256(record)):
        raise unusable(path, "measured another network than its run.json is about", made_by)
    check_weights(path.with_name("weights.safetensors"), metrics, made_by)
    for key, now in measure(experiment, run, seed, results).items() if measure else ():
        then = metrics.get(key, now)
        numbers = isinstance(now, float) and isinstance(then, float)
        if not (math.isclose(now, then, rel_tol=1e-4, abs_tol=1e-6) if numbers else now == then):
            raise unusable(path, f"{key}: {then!r}, but measured again it is {now!r}", made_by)


def _check_hash(path: Path, sha256: str | None, made_by: str) -> None:
    try:
        found = file_hash(path)
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}", made_by) from None
    if sha256 not in (None, found):
        raise unusable(path, f"damaged or replaced: its SHA-256 is {found[:16]}..., not {str(sha256)[:16]}...", made_by)


def _fault(check: Callable[..., object], *arguments: object) -> str:
    try:
        check(*arguments)
    except UserError as error:
        return str(error)
    return ""
