"""Build all that a training needs from what its spec names."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distillery.cluster.signals import StopSignal
from distillery.data.arrow import ArrowImages
from distillery.distill.assembly import Assembled, Side, TeacherSide, assemble
from distillery.distill.bank import Bank
from distillery.distill.frozen import KINDS, Kind, hastened
from distillery.distill.student import Learner
from distillery.distill.teacher import Several, Source, Teacher
from distillery.distill.term import TermContext
from distillery.errors import located
from distillery.evaluation.restore import FinishedRun
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.models import check_input, check_training, weights_without_gradient
from distillery.models.composite import Composite, with_head
from distillery.models.normalize import Normalize, resolve_statistics
from distillery.models.sync_batchnorm import convert_sync_batchnorm
from distillery.randomness import seed_generators
from distillery.training.alarms import Alarms
from distillery.training.answers import audit, banked_teacher, open_bank, record_if_absent
from distillery.training.checkpoint import CheckpointFolder, TrainState
from distillery.training.devices import accumulation_steps, collective_of
from distillery.training.initial import MeasuredTeacher, begin_network, finished_teacher
from distillery.training.inputs import (
    Validate,
    build_batches,
    build_calibration,
    build_train_loader,
    build_validate,
    training_images,
    validate_student,
)
from distillery.training.job import Job
from distillery.training.loop import Training
from distillery.training.metric_logger import MetricLogger
from distillery.training.mixing import mixing_of
from distillery.training.optim import build_optimizer, total_epochs
from distillery.training.speed import Compiled, Speed


def build_training(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal, began: float) -> Training:
    """Build the data, the networks, the objective and the optimizer, at the run's beginning.

    Raises:
        UserError: a part of the spec does not fit the data, the devices or another part.
    """
    assert job.spec.objective is not None
    images = training_images(job)
    accumulation = accumulation_steps(job, recipe, fabric.world_size)
    batches = build_batches(job, recipe, fabric, images, accumulation)
    validate = build_validate(job, fabric, job.manifest.selection_split)
    # A teacher is compared with its metrics.json, which is of the images that are reported.
    reported = validate if job.manifest.selection_split == "val" else build_validate(job, fabric, "val")
    measured = [found for each in job.by_teacher() if (found := _measured(each, recipe, fabric, stop, reported))]
    parties = _parties(job, recipe, fabric, images, measured, batches.smallest)
    learner, speed = parties.learner, job.machine.speed
    kinds: list[Kind] = ["plain"]
    answering: list[Teacher | Bank] = []
    for place, (each, one, found) in enumerate(zip(job.by_teacher(), parties.teachers, measured, strict=False)):
        if each.spec.answers is None:
            parties.teachers[place], kind = _hastened(one, speed.teacher, recipe, fabric, found.viewer)
            kinds.append(kind)
            answering.append(parties.teachers[place])
            continue
        # Its answers are on disk: the device needs no room for it, nor the loader its squares.
        bank = open_bank(each, recipe, images)
        audit(each, recipe, fabric, images, bank, one, found.viewer)
        answering.append(bank)
    shown = [None if isinstance(one, Bank) else found.viewer for one, found in zip(answering, measured, strict=True)]
    viewers = list(dict.fromkeys(viewer for viewer in shown if viewer is not None))
    if len(answering) == 1 and isinstance(answering[0], Teacher):
        learner.extractor.borrow(answering[0].extractor)
    teacher, stored, several = _arranged(job, answering, [viewers.index(one) + 1 if one else 0 for one in shown])
    exempt: set[str] = getattr(learner.student, "no_weight_decay", set)()
    with located(job.where):
        exempt_names = (f"student.{name}" for name in exempt)
        optimizer = build_optimizer(recipe.optimizer, learner, exempt_names, fused=speed.fused == "on")
    fused = any(group.get("fused") for group in optimizer.param_groups)
    ema = _ema(recipe, learner.student)
    own = [f"objective.{name}" for name in learner.objective.own_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        learner, own
    )
    train_state = TrainState()
    metric_logger = MetricLogger(job.folder, fabric.is_global_zero, job.tracked, job.machine.track)
    alarms = Alarms(
        job.name,
        fabric,
        learner,
        [one.extractor.network for one in answering if isinstance(one, Teacher)],
        len(job.manifest.classes),
        batches.steps,
        train_state,
        metric_logger.say,
        # A rehearsal's teacher has hardly been trained.
        knows_labels=not job.experiment.rehearsal,
        rehearsed=f"{job.where}.objective" if job.experiment.rehearsal else None,
    )
    compiled = _compile(speed, learner, [one for one in answering if isinstance(one, Teacher)])
    # As far as one of several allowed it.
    speed = replace(speed, fused="on" if fused else "off", teacher=max(kinds, key=KINDS.index), compile=compiled)
    wrapped, optimizer = fabric.setup(learner, optimizer)
    return Training(
        name=job.name,
        fabric=fabric,
        recipe=recipe,
        seed=job.seed,
        learner=wrapped,
        bare=learner,
        teacher=teacher,
        bank=stored,
        several=several,
        scores=_scores(measured),
        head=parties.head,
        mix=mixing_of(job, recipe),
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        accumulation=accumulation,
        labelled_share=None if job.spec.labels is None else job.spec.labels.labelled_share,
        train_loader=build_train_loader(job, recipe, fabric, images, batches, *viewers),
        calibration_batches=build_calibration(job, recipe, fabric, images, learner, *_surveyed(job, parties, measured)),
        validate=validate_student(validate, learner, recipe, collective_of(fabric)),
        train_state=train_state,
        checkpoints=CheckpointFolder(job.work_folder),
        checkpoint_seconds=job.machine.checkpoint_seconds,
        metric_logger=metric_logger,
        alarms=alarms,
        stop=stop,
        began=began,
        speed=speed,
    )


def _hastened(
    teacher: Teacher, kind: str, recipe: Recipe, fabric: Fabric, viewer: Preprocess | None
) -> tuple[Teacher, Kind]:
    """A live teacher as the machine has chosen, and as far as its network allows it."""
    if kind not in ("half", "folded"):
        return teacher, "plain"
    size = (viewer or recipe.preprocess).size
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=noise).to(fabric.device)
    with fabric.autocast():
        mixed = torch.is_autocast_enabled(fabric.device.type)
        dtype = torch.get_autocast_dtype(fabric.device.type) if mixed else torch.float32
    return hastened(teacher, cast(Kind, kind), dtype, images)


def _compile(speed: Speed, learner: Learner, teachers: list[Teacher]) -> Compiled:
    """Compile, in place, what was chosen of the networks that only logits are asked of; and say which these were.

    Features are taken by hooks that are open for a while, which compiled code does not see.
    """
    students = [learner.extractor] if speed.compile in ("student", "both") else []
    others = [one.extractor for one in teachers] if speed.compile in ("teacher", "both") else []
    made = [
        [each.network for each in side if each.taps is None and not isinstance(each.network, Composite)]
        for side in (others, students)
    ]
    for network in (*made[0], *made[1]):
        network.compile()
    found: Compiled = "teacher" if made[0] else "off"
    return ("both" if made[0] else "student") if made[1] else found


def _measured(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal, reported: Validate) -> MeasuredTeacher | None:
    """A teacher before anybody learns from it; None where there is none."""
    if job.spec.answers is None:
        return finished_teacher(job, recipe, fabric, reported)
    record_if_absent(job, recipe, fabric, stop)
    return banked_teacher(job, recipe, fabric)


def _arranged(
    job: Job, answering: list[Teacher | Bank], squares: list[int]
) -> tuple[Teacher | None, Bank | None, Several | None]:
    """The one teacher, its bank in its place, or several of either."""
    if len(answering) > 1:
        weights = [taught.weight for taught in job.spec.teachers]
        sources = tuple(Source(*parts) for parts in zip(answering, weights, squares, strict=True))
        return None, None, Several(sources, job.spec.teacher_mean or "probabilities")
    only = answering[0] if answering else None
    return (only, None, None) if isinstance(only, Teacher) else (None, only, None)


def _scores(measured: list[MeasuredTeacher]) -> Any:  # noqa: ANN401
    scores = [found.scores for found in measured]
    return scores if len(scores) > 1 else scores[0] if scores else None


def _surveyed(
    job: Job, parties: Assembled, measured: list[MeasuredTeacher]
) -> tuple[Teacher | None, Preprocess | None]:
    """Whom the terms survey with the student before an epoch, and how its images are prepared, if its own way."""
    place = parties.paired
    banked = job.by_teacher()[place].spec.answers is not None
    return (None, None) if banked or not measured else (parties.teachers[place], measured[place].viewer)


def _parties(
    job: Job,
    recipe: Recipe,
    fabric: Fabric,
    images: ArrowImages,
    measured: list[MeasuredTeacher],
    smallest: int,
) -> Assembled:
    """Build the student with its objective, and the teachers."""
    assert job.spec.objective is not None
    synchronised = recipe.sync_batchnorm and fabric.world_size > 1
    shared = smallest * fabric.world_size if synchronised else smallest

    def convert(module: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(module, fabric.device.type) if synchronised else module

    def check(network: nn.Module) -> None:
        # A network that makes something else of its last layer than logits cannot do without it.
        check_input(network, job.spec.model, recipe.preprocess.size, len(job.manifest.classes))
        check_training(network, job.spec.model, recipe.preprocess.size, shared)

    seed_generators(job.seed, "init")
    # One rank downloads what is to be downloaded; the others find the file.
    with fabric.rank_zero_first():
        student = begin_network(job)
    check(student)
    if isinstance(fabric.strategy, DDPStrategy):
        unused = weights_without_gradient(student, recipe.preprocess.size, shared)
        if unused:
            fabric.print(
                f"{job.name}: {len(unused)} parameters of {job.spec.model} never get a gradient, {unused[0]} for "
                "instance; they stay as they begin"
            )
            # DDP would wait for their gradients, and end with a traceback.
            fabric.strategy._ddp_kwargs["find_unused_parameters"] = True
    with located(job.where):
        student = convert(student)
        normalize = Normalize(*resolve_statistics(recipe.preprocess, job.manifest.statistics))
    parties = assemble(
        Side(student, job.spec.model, recipe.preprocess.size, normalize),
        [_side(each, recipe, fabric, found) for each, found in zip(job.by_teacher(), measured, strict=False)],
        job.spec.objective,
        TermContext(
            collective=collective_of(fabric),
            labels=images.labels,
            classes=len(job.manifest.classes),
            epochs=total_epochs(recipe),
            seed=job.seed,
        ),
        teacher_norm=job.spec.teacher_norm,
        channels_last=recipe.channels_last,
        where=job.where,
        convert=convert,
        check=check,
    )
    parties.learner.to(fabric.device)
    return parties


def _side(job: Job, recipe: Recipe, fabric: Fabric, found: MeasuredTeacher) -> TeacherSide:
    """A teacher, in the run as it meets it."""
    assert job.spec.teacher is not None
    unknown = set(found.run.record.get("unknown_classes", ()))
    return TeacherSide(
        found.run.network,
        job.spec.teacher.model,
        (found.viewer or recipe.preprocess).size,
        found.run.normalize,
        called=None if job.place is None else job.spec.teacher.digest,
        known=[place for place, name in enumerate(job.manifest.classes) if name not in unknown] if unknown else None,
        origin=partial(_before_training, job, fabric, found.run) if job.spec.margin_source == "pretrained" else None,
    )


def _before_training(job: Job, fabric: Fabric, finished: FinishedRun) -> nn.Module:
    """A teacher with the weights that it began with."""
    assert job.teacher is not None
    assert job.spec.teacher is not None
    with fabric.rank_zero_first():
        network = begin_network(Job(job.experiment, job.teacher, job.experiment.seeds(job.teacher)[0], job.results))
    return with_head(network, finished.record, finished.preprocess.size, job.spec.teacher.model)


def _ema(recipe: Recipe, student: nn.Module) -> Any:  # noqa: ANN401
    if recipe.ema is None:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(student, decay=recipe.ema.decay)
