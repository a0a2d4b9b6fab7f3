"""Build all that a training needs from what its spec names."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distillery.cluster.signals import StopSignal
from distillery.data.arrow import ArrowImages
from distillery.data.dali import DaliLoader
from distillery.data.loader import Batch, eval_loader, train_loader
from distillery.data.manifest import SplitName
from distillery.data.orders import Order, flow_sample, partner_order, repeated_order, shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import eval_transform, train_transform
from distillery.distill.collective import Collective
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.networks import FeatureExtractor, Learner, Size, Teacher
from distillery.distill.objective import build_objective
from distillery.distill.term import StagePair, StepInputs, TermContext
from distillery.errors import UserError, located
from distillery.evaluation.metrics import evaluate_model
from distillery.evaluation.restore import FinishedRun, restore_run
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.models import check_input
from distillery.models.normalize import Normalize, resolve_statistics
from distillery.models.sync_batchnorm import convert_sync_batchnorm
from distillery.models.taps import TapPoint, Taps, common_size, norm_affine, pair_stages, plan_taps
from distillery.randomness import seed_generators
from distillery.training.checkpoint import CheckpointFolder, TrainState
from distillery.training.collective import Ranks
from distillery.training.devices import accumulation_steps
from distillery.training.initial import begin_network
from distillery.training.job import Job
from distillery.training.loop import Training
from distillery.training.metric_logger import MetricLogger
from distillery.training.optim import build_optimizer

# A teacher that scores this many points less than when it was evaluated was not loaded as it was trained.
TEACHER_TOLERANCE = 0.5
EVALUATION_BATCH = 256


def build_training(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal, began: float) -> Training:
    """Build the data, the networks, the objective and the optimizer, at the run's beginning.

    Raises:
        UserError: a part of the spec does not fit the data, the devices or another part.
    """
    images = ArrowImages(job.data_folder, job.manifest, "train")
    accumulation = accumulation_steps(job, recipe, fabric.world_size)
    batches = _batches(job, recipe, fabric, images, accumulation)
    validate = _validator(job, fabric, job.manifest.selection_split)
    # A teacher is compared with its metrics.json, which is of the images that are reported.
    reported = validate if job.manifest.selection_split == "val" else _validator(job, fabric, "val")
    finished = _finished_teacher(job, fabric, reported)
    learner, teacher = _parties(job, recipe, fabric, finished)
    exempt: set[str] = getattr(learner.student, "no_weight_decay", set)()
    optimizer = build_optimizer(recipe.optimizer, learner, (f"student.{name}" for name in exempt))
    ema = _ema(recipe, learner.student)
    wrapped, optimizer = fabric.setup(learner, optimizer)

    def validate_student(network: nn.Module) -> dict[str, float]:
        network.eval()
        view = FeatureExtractor(network, learner.normalize, None, [], recipe.channels_last)
        return validate(lambda shown: view(shown).logits_BC, recipe.preprocess)

    return Training(
        name=job.name,
        fabric=fabric,
        recipe=recipe,
        seed=job.seed,
        learner=wrapped,
        bare=learner,
        teacher=teacher,
        mix=_mixer(recipe, len(job.manifest.classes)),
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        accumulation=accumulation,
        train_loader=_train_loader(job, recipe, fabric, images, batches),
        calibration_batches=_calibration_batches(job, recipe, fabric, images, learner, teacher),
        validate=validate_student,
        train_state=TrainState(),
        checkpoints=CheckpointFolder(job.work_folder),
        checkpoint_seconds=job.machine.checkpoint_seconds,
        metric_logger=MetricLogger(job.folder, active=fabric.is_global_zero),
        stop=stop,
        began=began,
    )


def _train_loader(
    job: Job, recipe: Recipe, fabric: Fabric, images: ArrowImages, batches: GlobalBatches
) -> Iterable[Batch]:
    transform = train_transform(recipe.preprocess, recipe.augment, job.manifest.statistics.mean)
    if job.machine.loader == "dali":
        return DaliLoader(images, transform, batches, job.seed, job.machine.workers, fabric.device)
    return train_loader(
        images, transform, batches, job.seed, job.machine.workers, pin_memory=fabric.device.type == "cuda"
    )


def _batches(job: Job, recipe: Recipe, fabric: Fabric, images: ArrowImages, accumulation: int) -> GlobalBatches:
    with located(job.where):
        order = _order(job, recipe, images)
        batches = GlobalBatches(
            order,
            len(order(0)),
            recipe.batch,
            world_size=fabric.world_size,
            rank=fabric.global_rank,
            accumulation=accumulation,
            drop_last=recipe.drop_last,
        )
    if batches.steps == 0:
        raise UserError(
            f"{job.where}.batch: {recipe.batch} is more than the {len(images)} training images; "
            "lower it or set `drop_last: false`"
        )
    return batches


def _order(job: Job, recipe: Recipe, images: ArrowImages) -> Order:
    assert job.spec.objective is not None
    bake = job.spec.objective.bake
    if bake is not None and bake.partners > 0:
        return partner_order(images.labels, job.seed, bake.partners)
    if recipe.repeats > 1:
        return repeated_order(len(images), job.seed, recipe.repeats)
    return shuffled_order(len(images), job.seed)


def _parties(job: Job, recipe: Recipe, fabric: Fabric, finished: FinishedRun | None) -> tuple[Learner, Teacher | None]:
    """Build the student and its objective, and let student and teacher see the same stages of each other."""
    assert job.spec.objective is not None
    terms = job.spec.objective.terms().values()
    size, classes = recipe.preprocess.size, len(job.manifest.classes)
    seed_generators(job.seed, "init")
    # One rank downloads what is to be downloaded; the others find the file.
    with fabric.rank_zero_first():
        student = begin_network(job)
    check_input(student, job.spec.model, size, classes)
    if recipe.sync_batchnorm and fabric.world_size > 1:
        student = convert_sync_batchnorm(student, fabric.device.type)
    student_taps, teacher_taps = None, None
    sizes: list[Size] = []
    pairs: list[StagePair] = []
    if any(options.needs_stages or options.needs_embedding for options in terms):
        student_plan = plan_taps(student, size, job.spec.model)
        stages: list[int] = []
        if any(options.needs_stages for options in terms):
            assert finished is not None
            assert job.spec.teacher is not None
            teacher_plan = plan_taps(finished.network, size, job.spec.teacher.model)
            matched = pair_stages(teacher_plan, student_plan)
            sizes = [common_size(*points) for points in matched]
            origin = _margin_origin(job, finished, fabric)
            pairs = [
                StagePair(student_stage.channels, teacher_stage.channels, _margin(origin, teacher_stage, fabric))
                for teacher_stage, student_stage in matched
            ]
            stages = [student_stage.stage for _, student_stage in matched]
            teacher_plan = teacher_plan.select([teacher_stage.stage for teacher_stage, _ in matched], embedding=False)
            teacher_taps = Taps(finished.network, teacher_plan)
        wants_vector = any(options.needs_embedding for options in terms)
        student_taps = Taps(student, student_plan.select(stages, embedding=wants_vector))
    collective = Ranks() if fabric.world_size > 1 else Collective()
    objective = build_objective(job.spec.objective, TermContext(tuple(pairs), collective))
    if recipe.sync_batchnorm and fabric.world_size > 1:
        objective.terms = cast(nn.ModuleDict, convert_sync_batchnorm(objective.terms, fabric.device.type))
    with located(job.where):
        normalize = Normalize(*resolve_statistics(recipe.preprocess, job.manifest.statistics))
    learner = Learner(FeatureExtractor(student, normalize, student_taps, sizes, recipe.channels_last), objective)
    student.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
    learner.to(fabric.device)
    if finished is None:
        return learner, None
    if recipe.channels_last:
        finished.network.to(memory_format=torch.channels_last)
    view = FeatureExtractor(finished.network, finished.normalize, teacher_taps, sizes, recipe.channels_last)
    return learner, Teacher(view, job.spec.teacher_norm)


def _margin_origin(job: Job, finished: FinishedRun, fabric: Fabric) -> nn.Module:
    """The network whose batch norms give the margins: the teacher, or the teacher as it was before it was trained."""
    teacher = job.experiment.teacher(job.run)
    if teacher is None or job.spec.margin_source == "teacher":
        return finished.network
    with fabric.rank_zero_first():
        return begin_network(Job(job.experiment, teacher, job.experiment.seeds(teacher)[0], job.results))


def _margin(network: nn.Module, point: TapPoint, fabric: Fabric) -> Tensor | None:
    """The margins of a teacher's stage from batch norms, where these feed it."""
    affine = norm_affine(network, point)
    return None if affine is None else bn_margin(*affine).to(fabric.device)


def _ema(recipe: Recipe, student: nn.Module) -> Any:  # noqa: ANN401
    if recipe.ema is None:
        return None
    from timm.utils.model_ema import ModelEmaV3

    return ModelEmaV3(student, decay=recipe.ema.decay)


def _mixer(recipe: Recipe, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Mixup and cutmix of timm, one of them for a whole batch."""
    if recipe.mix is None:
        return None
    from timm.data.mixup import Mixup

    mix = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=recipe.mix.mixup,
        cutmix_alpha=recipe.mix.cutmix,
        prob=recipe.mix.p,
        switch_prob=recipe.mix.switch,
        mode="batch",
        label_smoothing=0.0,
        num_classes=classes,
    )
    return lambda images, labels: mix(images.float() / 255 if images.dtype == torch.uint8 else images, labels)


Validate = Callable[[Callable[[Tensor], Tensor], Preprocess], dict[str, float]]


def _validator(job: Job, fabric: Fabric, split: SplitName) -> Validate:
    """Measure any network on the images of a split, each image once over all ranks."""
    images = ArrowImages(job.data_folder, job.manifest, split)
    kept: dict[Preprocess, DataLoader[Batch]] = {}

    def loader_for(preprocess: Preprocess) -> "DataLoader[Batch]":
        """The loader of last time with its workers, unless the teacher wanted its images prepared in another way."""
        if preprocess not in kept:
            kept.clear()
            kept[preprocess] = eval_loader(
                images,
                eval_transform(preprocess),
                batch=EVALUATION_BATCH,
                workers=job.machine.workers,
                world_size=fabric.world_size,
                rank=fabric.global_rank,
                pin_memory=fabric.device.type == "cuda",
                persistent=True,
            )
        return kept[preprocess]

    def validate(predict: Callable[[Tensor], Tensor], preprocess: Preprocess) -> dict[str, float]:
        loader = loader_for(preprocess)
        with fabric.autocast():
            measured = evaluate_model(predict, loader, len(job.manifest.classes), fabric.device)
        return {"loss": measured["nll"], "top1": measured["top1"], "top5": measured["top5"]}

    return validate


def _calibration_batches(
    job: Job, recipe: Recipe, fabric: Fabric, images: ArrowImages, learner: Learner, teacher: Teacher | None
) -> Callable[[int], Callable[[int], Iterable[StepInputs]]]:
    """For an epoch, training images prepared as for evaluation, both networks in evaluation mode."""

    @torch.no_grad()
    def inputs(epoch: int, limit: int) -> Iterator[StepInputs]:
        assert teacher is not None
        learner.eval()
        loader = eval_loader(
            images,
            eval_transform(recipe.preprocess),
            batch=EVALUATION_BATCH,
            workers=job.machine.workers,
            world_size=fabric.world_size,
            rank=fabric.global_rank,
            pin_memory=fabric.device.type == "cuda",
            indices=flow_sample(len(images), job.seed, epoch, limit),
        )
        with teacher.as_evaluated():
            for batch in loader:
                shown = batch.to(fabric.device, non_blocking=True)
                with fabric.autocast():
                    inputs = StepInputs(learner.view(shown.images), shown.labels, teacher(shown.images))
                yield inputs.widened()

    return lambda epoch: lambda limit: inputs(epoch, limit)


def _finished_teacher(job: Job, fabric: Fabric, validate: Validate) -> FinishedRun | None:
    """Load the teacher and measure it before anybody learns from it."""
    name = job.experiment.teacher(job.run)
    if name is None:
        return None
    finished = restore_run(
        job.experiment, name, job.experiment.seeds(name)[0], job.results, fabric.device, job.manifest
    )
    measured = validate(finished.predict, finished.preprocess)["top1"]
    fabric.print(f"{job.name}: teacher {name} scores {measured:.2f} % top-1 on the validation images")
    metrics = finished.weights.with_name("metrics.json")
    if metrics.exists():
        recorded = json.loads(metrics.read_text(encoding="utf-8"))
        expected = recorded["top1"]
        # Metrics of weights that were replaced since say nothing about these.
        if recorded["weights_sha256"] == finished.weights_sha256 and measured < expected - TEACHER_TOLERANCE:
            raise UserError(
                f"{finished.weights}: this teacher scores {measured:.2f} % top-1 on the validation images, but "
                f"{expected:.2f} % stands in {metrics}; train or import it anew"
            )
    return finished
