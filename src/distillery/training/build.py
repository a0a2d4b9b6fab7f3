"""Build all that a training needs from what its spec names."""

from dataclasses import replace
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from distillery.cluster.signals import StopSignal
from distillery.data.arrow import ArrowImages
from distillery.distill.bank import Bank
from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Several, Source, Teacher
from distillery.distill.term import TermContext, pair_context
from distillery.errors import located
from distillery.evaluation.restore import FinishedRun
from distillery.experiment.schema.objective import STAGEWISE, Needs
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.models import check_input, check_training, weights_without_gradient
from distillery.models.composite import Composite, Head, with_head
from distillery.models.normalize import Normalize, resolve_statistics
from distillery.models.sync_batchnorm import convert_sync_batchnorm
from distillery.models.taps import Party, TapPair, Taps, pair_networks
from distillery.randomness import seed_generators
from distillery.training.alarms import Alarms
from distillery.training.answers import audit, banked_teacher, open_bank, record_if_absent
from distillery.training.checkpoint import CheckpointFolder, TrainState
from distillery.training.devices import accumulation_steps
from distillery.training.initial import MeasuredTeacher, begin_network, finished_teacher
from distillery.training.inputs import (
    Validate,
    build_batches,
    build_calibration,
    build_mix,
    build_train_loader,
    build_validate,
    training_images,
    validate_student,
)
from distillery.training.job import Job
from distillery.training.loop import Training
from distillery.training.metric_logger import MetricLogger
from distillery.training.optim import build_optimizer, total_epochs


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
    learner, teachers, head = _parties(job, recipe, fabric, images, measured, batches.smallest)
    answering: list[Teacher | Bank] = []
    for each, one, found in zip(job.by_teacher(), teachers, measured, strict=False):
        if each.spec.answers is None:
            answering.append(one)
            continue
        # Its answers are on disk: the device needs no room for it, nor the loader its squares.
        bank = open_bank(each, recipe, images)
        audit(each, recipe, fabric, images, bank, one, found.viewer)
        answering.append(bank)
    shown = [None if isinstance(one, Bank) else found.viewer for one, found in zip(answering, measured, strict=True)]
    viewers = list(dict.fromkeys(viewer for viewer in shown if viewer is not None))
    teacher, stored, several = _arranged(job, answering, [viewers.index(one) + 1 if one else 0 for one in shown])
    exempt: set[str] = getattr(learner.student, "no_weight_decay", set)()
    with located(job.where):
        optimizer = build_optimizer(recipe.optimizer, learner, (f"student.{name}" for name in exempt))
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
        head=head,
        mix=build_mix(recipe, len(job.manifest.classes)),
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        accumulation=accumulation,
        labelled_share=None if job.spec.labels is None else job.spec.labels.labelled_share,
        train_loader=build_train_loader(job, recipe, fabric, images, batches, *viewers),
        calibration_batches=build_calibration(
            job, recipe, fabric, images, learner, *_surveyed(job, teachers, measured)
        ),
        validate=validate_student(validate, learner, recipe, _collective(fabric)),
        train_state=train_state,
        checkpoints=CheckpointFolder(job.work_folder),
        checkpoint_seconds=job.machine.checkpoint_seconds,
        metric_logger=metric_logger,
        alarms=alarms,
        stop=stop,
        began=began,
    )


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


def _stages_of(job: Job) -> int:
    """Of several teachers, the place of the one whose stages are paired with the student's."""
    needs = [each.spec.objective.needs().teacher for each in job.by_teacher() if each.spec.objective is not None]
    return next((place for place, kinds in enumerate(needs) if kinds & STAGEWISE), 0)


def _surveyed(
    job: Job, teachers: list[Teacher], measured: list[MeasuredTeacher]
) -> tuple[Teacher | None, Preprocess | None]:
    """Whom the terms survey with the student before an epoch, and how its images are prepared, if its own way."""
    place = _stages_of(job)
    banked = job.by_teacher()[place].spec.answers is not None
    return (None, None) if banked or not teachers else (teachers[place], measured[place].viewer)


def _parties(
    job: Job,
    recipe: Recipe,
    fabric: Fabric,
    images: ArrowImages,
    measured: list[MeasuredTeacher],
    smallest: int,
) -> tuple[Learner, list[Teacher], dict[str, Any] | None]:
    """Build the student with its objective, and the teachers; and say which head is deployed with the student."""
    assert job.spec.objective is not None
    jobs, place = job.by_teacher(), _stages_of(job)
    first = jobs[place]
    assert first.spec.objective is not None
    finished, viewer = (measured[place].run, measured[place].viewer) if measured else (None, None)
    synchronised = recipe.sync_batchnorm and fabric.world_size > 1
    seed_generators(job.seed, "init")
    # One rank downloads what is to be downloaded; the others find the file.
    with fabric.rank_zero_first():
        student = begin_network(job)
    check_input(student, job.spec.model, recipe.preprocess.size, len(job.manifest.classes))
    shared = smallest * fabric.world_size if synchronised else smallest
    check_training(student, job.spec.model, recipe.preprocess.size, shared)
    if isinstance(fabric.strategy, DDPStrategy):
        unused = weights_without_gradient(student, recipe.preprocess.size, shared)
        if unused:
            fabric.print(
                f"{job.name}: {len(unused)} parameters of {job.spec.model} never get a gradient, {unused[0]} for "
                "instance; they stay as they begin"
            )
            # DDP would wait for their gradients, and end with a traceback.
            fabric.strategy._ddp_kwargs["find_unused_parameters"] = True
    if synchronised:
        with located(job.where):
            student = convert_sync_batchnorm(student, fabric.device.type)
    names = (job.spec.model, first.spec.teacher.model if first.spec.teacher else "")
    network = finished.network if finished else None
    sizes = recipe.preprocess.size, (viewer or recipe.preprocess).size
    needs = replace(job.spec.objective.needs(), teacher=first.spec.objective.needs().teacher)
    pair = pair_networks(student, network, needs, sizes[0], names, sizes[1])
    pairs = [
        pair if each is first else replace(pair, teacher=_other_party(each, found, recipe))
        for each, found in zip(jobs, measured, strict=False)
    ]
    context = _context(first, fabric, images, pair, finished)
    contexts = {
        each.spec.teacher.digest: context if own is pair else _context(each, fabric, images, own, found.run)
        for each, own, found in zip(jobs, pairs, measured, strict=False)
        if job.spec.teachers and each.spec.teacher is not None
    }
    with located(job.where):
        objective = build_objective(job.spec.objective, context, _known(jobs, measured), contexts)
    options = job.spec.objective.terms()
    heads = [
        (name, head)
        for name, term in objective.each()
        if (head := term.head(contexts.get(options[name].teacher or "", context))) is not None
    ]
    taps, described = pair.student.taps, None
    for name, head in heads:
        made = cast(Head, convert_sync_batchnorm(head, fabric.device.type)) if synchronised else head
        student = Composite(student, made, recipe.preprocess.size, job.spec.model)
        taps = Taps(student.network, taps.plan, taps.kinds) if taps is not None else None
        described = {"term": name, "arguments": head.arguments}
        # A network that makes something else of its last layer than logits cannot do without it.
        check_input(student, job.spec.model, recipe.preprocess.size, len(job.manifest.classes))
        check_training(student, job.spec.model, recipe.preprocess.size, shared)
    if synchronised:
        objective.terms = cast(nn.ModuleDict, convert_sync_batchnorm(objective.terms, fabric.device.type))
    with located(job.where):
        normalize = Normalize(*resolve_statistics(recipe.preprocess, job.manifest.statistics))
    extractor = FeatureExtractor(student, normalize, taps, pair.sizes, recipe.channels_last, needs.unpooled)
    learner = Learner(extractor, objective, partners=needs.partner)
    student.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
    learner.to(fabric.device)
    teachers = []
    for own, found in zip(pairs, measured, strict=True):
        if recipe.channels_last:
            found.run.network.to(memory_format=torch.channels_last)
        shown = FeatureExtractor(
            found.run.network, found.run.normalize, own.teacher.taps, own.sizes, recipe.channels_last, needs.unpooled
        )
        teachers.append(Teacher(shown, job.spec.teacher_norm))
    return learner, teachers, described


def _other_party(job: Job, found: MeasuredTeacher, recipe: Recipe) -> Party:
    """A further teacher, of which no stages are wanted, with its taps."""
    assert job.spec.objective is not None
    assert job.spec.teacher is not None
    needs, model = Needs(teacher=job.spec.objective.needs().teacher), job.spec.teacher.model
    size = (found.viewer or recipe.preprocess).size
    return pair_networks(found.run.network, found.run.network, needs, size, (model, model)).teacher


def _context(job: Job, fabric: Fabric, images: ArrowImages, pair: TapPair, finished: FinishedRun | None) -> TermContext:
    assert job.spec.recipe is not None
    return pair_context(
        pair,
        _margins(job, fabric, pair, finished),
        collective=_collective(fabric),
        labels=images.labels,
        classes=len(job.manifest.classes),
        epochs=total_epochs(job.spec.recipe),
        seed=job.seed,
    )


def _known(jobs: list[Job], measured: list[MeasuredTeacher]) -> dict[str | None, list[int]]:
    """By teacher, None where it is the only one, the classes that it knows, where it does not know all."""
    known: dict[str | None, list[int]] = {}
    for job, found in zip(jobs, measured, strict=False):
        unknown = set(found.run.record.get("unknown_classes", ()))
        if unknown and job.spec.teacher is not None:
            own = [place for place, name in enumerate(job.manifest.classes) if name not in unknown]
            known[None if job.place is None else job.spec.teacher.digest] = own
    return known


def _collective(fabric: Fabric) -> Collective:
    return ProcessGroup() if fabric.world_size > 1 else Collective()


def _margins(job: Job, fabric: Fabric, pair: TapPair, finished: FinishedRun | None) -> list[torch.Tensor | None]:
    """The margins of the teacher's stages, from its own batch norms or from those that it had before it was trained."""
    assert job.spec.objective is not None
    teacher = job.teacher
    if finished is None or teacher is None or not job.spec.objective.needs().margins:
        return []
    origin = finished.network
    if job.spec.margin_source == "pretrained":
        with fabric.rank_zero_first():
            origin = begin_network(Job(job.experiment, teacher, job.experiment.seeds(teacher)[0], job.results))
        assert job.spec.teacher is not None
        origin = with_head(origin, finished.record, finished.preprocess.size, job.spec.teacher.model)
    return [None if norms is None else bn_margin(*norms).to(fabric.device) for norms in pair.norms(origin)]


def _ema(recipe: Recipe, student: nn.Module) -> Any:  # noqa: ANN401
    if recipe.ema is None:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(student, decay=recipe.ema.decay)
