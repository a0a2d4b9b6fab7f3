"""A teacher answers once for many runs: record a bank, open it, and see that it is this teacher's."""

import hashlib
import shutil
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from distillery.atomic import replace_file
from distillery.cluster.run_lock import RunLock
from distillery.cluster.signals import StopSignal
from distillery.data.arrow import ArrowImages
from distillery.data.loader import Batch, TrainImages, said_every_minute
from distillery.data.orders import Ids, Order
from distillery.data.samplers import GlobalBatches, Sample, copy_numbers
from distillery.distill.assembly import Side, tap_alone
from distillery.distill.bank import Bank, RowFormat, open_part, part_path
from distillery.distill.student import FeatureExtractor
from distillery.distill.teacher import Teacher
from distillery.errors import UserError, located
from distillery.experiment.bank import bank_address, bank_ledger, bank_parts, holds_embedding
from distillery.experiment.schema.objective import Needs
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.experiment.schema.teacher import Answers
from distillery.paths import RESULTS, bank_folder, work_folder
from distillery.provenance import provenance
from distillery.randomness import addressed_bits
from distillery.results import read_json, try_json, write_sealed
from distillery.training.devices import accumulation_steps, settle, start_devices
from distillery.training.initial import MeasuredTeacher, finished_teacher, restored_teacher
from distillery.training.inputs import (
    bank_order,
    build_train_loader,
    build_validate,
    training_images,
    training_transforms,
    view_seed,
)
from distillery.training.job import Job
from distillery.training.mixing import Mixing, mixing_of

RECORD = "bank.json"
# How many rows a run computes anew before it believes a bank, in each of so many parts.
AUDITED_ROWS, AUDITED_PARTS = 8, 2
# Of how many rows of each part bank.json keeps a sum.
SAMPLED_ROWS = 16
# How far they may lie from the stored ones, as a share of their norm: as far as kernels and formats round, and not as
# far as another network or another crop would lie.
TOLERANCE = {"32-true": 0.01}
HALF_TOLERANCE = 0.1


def folder_of(job: Job) -> Path:
    """Where the bank lies that a run learns from."""
    teacher = job.teacher
    assert teacher is not None
    seed = job.experiment.seeds(teacher)[0]
    return bank_folder(job.results, job.experiment.name, teacher, seed, bank_address(job.spec))


def command_for(job: Job) -> str:
    """The command that records the bank of a run."""
    results = "" if job.results == RESULTS else f" --results {job.results}"
    return f"distillery answer {job.experiment.path} {job.teacher}{results}"


# --- recording -------------------------------------------------------------------------------------------------------


def record_answers(job: Job, stop: StopSignal) -> None:
    """Let the teacher of a run answer to all augmented images that the run will see, and leave its bank whole.

    Parts that an interrupted call has finished are kept; another process that records the same bank is waited for.

    Raises:
        UserError: something it needs is missing, the disk is too small, or an answer does not fit its row.
        Stopped: a signal asked it to stop.
    """
    job, recipe = settle(job)
    stop.install()
    try:
        _record_alone(job, recipe, start_devices(recipe, job.machine.threads, speed=job.machine.speed), stop)
    finally:
        stop.remove()


def record_if_absent(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal) -> None:
    """As ``record_answers``, by a student that finds no bank, on its own devices."""
    if not (folder_of(job) / RECORD).exists():
        _record_alone(job, recipe, fabric, stop)


def _record_alone(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal) -> None:
    if fabric.world_size > 1:
        raise UserError(
            f"{folder_of(job) / RECORD}: missing, and {fabric.world_size} processes cannot record it together; first "
            f"make it with: {command_for(job)}"
        )
    teacher = job.teacher
    assert teacher is not None
    seed = job.experiment.seeds(teacher)[0]
    work = work_folder(job.results, job.experiment.name, teacher, seed) / f"bank-{bank_address(job.spec)}"
    lock = RunLock(work.with_suffix(".lock"))
    lock.acquire(patience_seconds=float("inf"))
    try:
        _record(job, recipe, fabric, stop, work)
    finally:
        lock.release()


def _record(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal, work: Path) -> None:
    target, name = folder_of(job), f"{job.teacher}'s answers"
    measured = finished_teacher(job, recipe, fabric, build_validate(job, fabric, "val"))
    assert measured is not None
    identity = _identity(job, measured)
    if _is_whole(target, identity):
        fabric.print(f"{name}: {target} is whole already")
        return
    teacher, features = _answering(job, recipe, measured)
    with located(job.where):
        row_format = RowFormat(_answers(job), measured.run.record["classes"], features)
    # What another teacher or other images left there is of no use.
    if (try_json(work / "identity.json") or {}).get("identity") != identity:
        shutil.rmtree(work, ignore_errors=True)
        write_sealed(work / "identity.json", {"identity": identity})
    images = training_images(job)
    order = bank_order(job, recipe, images)
    rows, parts = len(order(0)), bank_parts(job.spec)
    left = [part for part in range(parts) if not part_path(work, part).exists()]
    _check_room(work, len(left) * rows * row_format.dtype.itemsize)
    accumulation, mix = accumulation_steps(job, recipe, 1), mixing_of(job, recipe)
    if mix is None:
        batches = GlobalBatches(order, rows, recipe.batch // accumulation, drop_last=False)
    else:
        batches = GlobalBatches(order, rows, recipe.batch, accumulation=accumulation, paired=True)
    loader = build_train_loader(job, recipe, fabric, images, batches, measured.viewer)
    what = "epoch" if recipe.crops is None else "view"
    for part in left:
        began = time.monotonic()
        batches.start(part)
        keys = _keys(order, part)
        with replace_file(part_path(work, part)) as temporary:
            stored = np.lib.format.open_memmap(temporary, mode="w+", dtype=row_format.dtype, shape=(rows,))
            shown = iter(loader)
            for number, samples in enumerate(batches):
                with said_every_minute():
                    batch = next(shown).to(fabric.device, non_blocking=True)
                images_BCHW = _seen(batch, mix, part, number // accumulation)
                with fabric.autocast():
                    outputs = teacher(images_BCHW)
                wanted = [_key(rows, sample.index, sample.copy) for sample in samples]
                with located(job.where):
                    stored[np.searchsorted(keys, wanted)] = row_format.encode(outputs)
                stop.should_save()
                stop.check()
            stored.flush()
            del stored
        speed = rows / (time.monotonic() - began)
        fabric.print(f"{name}: {what} {part + 1} of {parts}: {rows} images, {speed:,.0f} a second")
    (work / "identity.json").unlink()
    facts: dict[str, Any] = {"identity": identity, "ledger": bank_ledger(job.spec), "teacher": measured.scores}
    facts["parts_sha256"] = [_sampled_sha256(work, part, row_format) for part in range(parts)]
    facts |= {"classes": row_format.classes, "features": features, "rows": rows, "parts": parts}
    write_sealed(work / RECORD, {**facts, "provenance": provenance()})
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    work.replace(target)


def _seen(batch: Batch, mix: Mixing | None, epoch: int, step: int) -> Tensor:
    """What the teacher sees of a batch: the student's squares or its own, mixed as the student's."""
    if batch.teacher_images is not None:
        own, size = batch.teacher_images, batch.images.shape[-1]
        return own if mix is None else mix.alike(own, size, epoch, step)
    return batch.images if mix is None else mix(batch.images, batch.labels, epoch, step)[0]


def _identity(job: Job, measured: MeasuredTeacher) -> dict[str, str]:
    """What a bank belongs to, as far as the configuration does not say it."""
    return {
        "address": bank_address(job.spec),
        "manifest_digest": job.manifest.digest,
        "weights_sha256": measured.run.weights_sha256,
    }


def _is_whole(folder: Path, identity: dict[str, str]) -> bool:
    record = try_json(folder / RECORD) or {}
    return record.get("identity") == identity and all(
        part_path(folder, part).exists() for part in range(record["parts"])
    )


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the bank needs {needed / 1e9:,.1f} GB more, and the disk has {free / 1e9:,.1f} GB left; write "
            "`rows: float16` or `rows: {top: 16}`, a smaller `crops`, or `answers: live`"
        )


def _answering(job: Job, recipe: Recipe, measured: MeasuredTeacher) -> tuple[Teacher, int]:
    """The teacher with what its rows hold, and the width of the embedding, 0 where they hold none."""
    assert job.spec.teacher is not None
    run, size = measured.run, (measured.viewer or recipe.preprocess).size
    needs = Needs(teacher={"logits", "embedding"} if holds_embedding(job.spec) else {"logits"})
    party = tap_alone(Side(run.network, job.spec.teacher.model, size, run.normalize), needs)
    shown = FeatureExtractor(run.network, run.normalize, party.taps, [], recipe.channels_last)
    run.network.to(memory_format=shown.memory_format)
    return Teacher(shown, "eval"), party.features


def _answers(job: Job) -> Answers:
    assert job.spec.answers is not None
    return job.spec.answers


def _keys(order: Order, part: int) -> Ids:
    """A number for each sample of a part, ascending: the places of its rows."""
    ids = order(part)
    return np.sort(_key(len(ids), ids, copy_numbers(ids)))


def _key(rows: int, index: Any, copy: Any) -> Any:  # noqa: ANN401
    """Of a part of so many rows, no image comes more often than there are rows."""
    return index * rows + copy


# --- reading ---------------------------------------------------------------------------------------------------------


def read_record(job: Job) -> dict[str, Any]:
    """What is on record of a run's bank.

    Raises:
        UserError: it was not made yet, or not whole.
    """
    return read_json(
        folder_of(job) / RECORD, command_for(job), ("identity", "teacher", "classes", "features", "rows", "parts")
    )


def banked_teacher(job: Job, recipe: Recipe, fabric: Fabric) -> MeasuredTeacher:
    """The teacher of a run that learns from a bank, with the scores that it had when it answered.

    Raises:
        UserError: there is no bank, or it is of other weights, of other images, or not whole.
    """
    record, folder = read_record(job), folder_of(job)
    run, viewer = restored_teacher(job, recipe, fabric)
    measured = MeasuredTeacher(run, viewer, record["teacher"])
    said = {"weights_sha256": "of other weights", "manifest_digest": "to other images", "address": "of another bank"}
    for key, now in _identity(job, measured).items():
        if record["identity"].get(key) != now:
            raise UserError(
                f"{folder / RECORD}: its answers are {said[key]}; remove {folder}, then: {command_for(job)}"
            )
    return measured


def open_bank(job: Job, recipe: Recipe, images: ArrowImages) -> Bank:
    """The bank that a run learns from, with every part in its place.

    Raises:
        UserError: a part is missing, cut off or of other rows.
    """
    record, folder, order = read_record(job), folder_of(job), bank_order(job, recipe, images)
    row_format, rows = RowFormat(_answers(job), record["classes"], record["features"]), len(order(0))
    sums = record.get("parts_sha256")
    for part in range(bank_parts(job.spec)):
        if len(open_part(part_path(folder, part), row_format.dtype)) != rows:
            raise UserError(f"{part_path(folder, part)}: not whole; remove {folder}, then: {command_for(job)}")
        if sums is not None and sums[part] != _sampled_sha256(folder, part, row_format):
            raise UserError(
                f"{part_path(folder, part)}: holds other rows than were stored; remove {folder}, then: "
                f"{command_for(job)}"
            )

    @lru_cache(maxsize=2)
    def keys(part: int) -> Ids:
        return _keys(order, part)

    # Every view is of all images.
    one = recipe.crops is not None
    return Bank(folder, row_format, lambda part: keys(0 if one else part), lambda index, copy: _key(rows, index, copy))


def _sampled_sha256(folder: Path, part: int, row_format: RowFormat) -> str:
    """Of rows all over a part: another part in its place is found, without reading a giant's whole bank."""
    rows = open_part(part_path(folder, part), row_format.dtype)
    return hashlib.sha256(rows[np.linspace(0, len(rows) - 1, SAMPLED_ROWS).astype(np.int64)].tobytes()).hexdigest()


def audit(
    job: Job,
    recipe: Recipe,
    fabric: Fabric,
    images: ArrowImages,
    bank: Bank,
    teacher: Teacher,
    viewer: Preprocess | None,
) -> None:
    """Let the teacher answer anew to a few images, drawn by the run's seed and the process, and compare.

    ``viewer`` says how its images are prepared, where it does not see the student's squares.

    Raises:
        UserError: its answers are not those of the bank.
    """
    order, parts = bank_order(job, recipe, images), bank_parts(job.spec)
    rows, mix = len(order(0)), mixing_of(job, recipe)
    bits = addressed_bits(AUDITED_PARTS * (1 + AUDITED_ROWS), job.seed, "audit", fabric.global_rank)
    transform, own = training_transforms(job, recipe, viewer)
    shown = TrainImages(images, transform, view_seed(job, recipe), teacher=own)
    samples: list[Sample] = []
    seen: list[Tensor] = []
    for draws in np.split(bits, AUDITED_PARTS):
        part = int(draws[0] % np.uint64(parts))
        ids = order(part)
        copies = copy_numbers(ids)
        for place in (draws[1:] % np.uint64(rows)).astype(np.int64).tolist():
            step, within = divmod(place, recipe.batch)
            # An image that is mixed is asked for together with the one that it is mixed with.
            places = [place] if mix is None else [place, step * recipe.batch + recipe.batch - 1 - within]
            asked = [Sample(part, int(ids[each]), int(copies[each])) for each in places]
            samples += asked
            seen.append(_seen(shown[asked].to(fabric.device), mix, part, step))
    with fabric.autocast():
        live = teacher(torch.cat(seen))
    error = bank.row_format.error(bank.records(samples), live)
    allowed = TOLERANCE.get(recipe.precision, HALF_TOLERANCE)
    if not error <= allowed:
        raise UserError(
            f"{bank.folder}: {len(samples)} answers that {job.teacher} gives now differ by "
            f"{error:.1%} from the stored ones ({allowed:.0%} may be rounding); remove it, then: {command_for(job)}"
        )
