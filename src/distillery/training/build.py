"""Build all that a training needs from what its spec names."""

import json
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distillery.config import RunSpec
from distillery.config.schema import Preprocess, Recipe
from distillery.data.arrow import ArrowImages
from distillery.data.loader import eval_loader, train_loader
from distillery.data.samplers import GlobalBatches, shuffled_order
from distillery.data.transforms import eval_transform, train_transform
from distillery.errors import UserError
from distillery.evaluation.metrics import evaluate_model
from distillery.models import create_model
from distillery.models.normalize import Normalize, resolve_statistics
from distillery.models.sync_batchnorm import convert_sync_batchnorm
from distillery.models.weights import load_weights
from distillery.objectives import build_objective
from distillery.randomness import seed_generators
from distillery.training.checkpoint import CheckpointFolder, Progress, StopSignal
from distillery.training.devices import accumulation_steps
from distillery.training.job import Job
from distillery.training.logbook import Logbook
from distillery.training.loop import Training
from distillery.training.networks import Learner, Teacher
from distillery.training.optim import build_optimizer

# A teacher that scores this many points less than when it was evaluated was not loaded as it was trained.
TEACHER_TOLERANCE = 0.5

Validate = Callable[[Callable[[Tensor], Tensor], Preprocess], dict[str, float]]


def build_training(job: Job, recipe: Recipe, fabric: Fabric, stop: StopSignal, began: float) -> Training:
    """Build the data, the learner, its optimizer and its teacher, at the run's beginning.

    Raises:
        UserError: a part of the spec does not fit the data, the devices or another part.
    """
    accumulation = accumulation_steps(job, recipe, fabric.world_size)
    images, batches = _training_images(job, recipe, fabric, accumulation)
    validate = _validator(job, fabric)
    learner = _learner(job, recipe, fabric)
    teacher = None if job.spec.teacher is None else _teacher(job, job.spec.teacher, recipe, fabric, validate)
    exempt = getattr(learner.student, "no_weight_decay", frozenset)()
    optimizer = build_optimizer(recipe.optimizer, learner, (f"student.{name}" for name in exempt))
    ema = _ema(recipe, learner.student)
    wrapped, optimizer = fabric.setup(learner, optimizer)
    memory_format = learner.memory_format

    def validate_student(network: nn.Module) -> dict[str, float]:
        network.eval()
        return validate(
            lambda images: network(learner.normalize(images).contiguous(memory_format=memory_format)), recipe.preprocess
        )

    return Training(
        name=job.name,
        fabric=fabric,
        recipe=recipe,
        seed=job.seed,
        learner=wrapped,
        bare=learner,
        teacher=teacher,
        optimizer=optimizer,
        ema=ema,
        batches=batches,
        accumulation=accumulation,
        train_loader=train_loader(
            images,
            train_transform(recipe.preprocess, recipe.augment),
            batches,
            seed=job.seed,
            workers=job.machine.workers,
            pin_memory=fabric.device.type == "cuda",
        ),
        validate=validate_student,
        progress=Progress(),
        checkpoints=CheckpointFolder(job.work_folder),
        checkpoint_seconds=job.machine.checkpoint_seconds,
        logbook=Logbook(job.folder, active=fabric.is_global_zero),
        stop=stop,
        began=began,
    )


def _training_images(job: Job, recipe: Recipe, fabric: Fabric, accumulation: int) -> tuple[ArrowImages, GlobalBatches]:
    images = ArrowImages(job.data_folder, job.manifest, "train")
    batches = GlobalBatches(
        shuffled_order(len(images), job.seed),
        len(images),
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
    return images, batches


def _learner(job: Job, recipe: Recipe, fabric: Fabric) -> Learner:
    seed_generators(job.seed, "init")
    student = create_model(job.spec.model, len(job.manifest.classes), **job.spec.model_args)
    if recipe.sync_batchnorm and fabric.world_size > 1:
        student = convert_sync_batchnorm(student, fabric.device.type)
    normalize = Normalize(*resolve_statistics(recipe.preprocess, job.manifest.statistics))
    assert job.spec.objective is not None
    learner = Learner(student, normalize, build_objective(job.spec.objective), recipe.channels_last)
    learner.student.to(memory_format=learner.memory_format)
    return learner.to(fabric.device)


def _ema(recipe: Recipe, student: nn.Module) -> Any:  # noqa: ANN401
    if recipe.ema is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(student, decay=recipe.ema.decay)


def _validator(job: Job, fabric: Fabric) -> Validate:
    """Measure any network on the validation images, each image once over all ranks."""
    images = ArrowImages(job.data_folder, job.manifest, "val")

    def validate(predict: Callable[[Tensor], Tensor], preprocess: Preprocess) -> dict[str, float]:
        loader = eval_loader(
            images,
            eval_transform(preprocess),
            batch=256,
            workers=job.machine.workers,
            world_size=fabric.world_size,
            rank=fabric.global_rank,
            pin_memory=fabric.device.type == "cuda",
        )
        with fabric.autocast():
            return evaluate_model(predict, loader, len(job.manifest.classes), fabric.device)

    return validate


def _teacher(job: Job, spec: RunSpec, recipe: Recipe, fabric: Fabric, validate: Validate) -> Teacher:
    """Load the teacher and measure it before anybody learns from it."""
    weights = job.teacher_folder / "weights.safetensors"
    record = _read_json(job.teacher_folder / "run.json", job)
    network = create_model(spec.model, len(job.manifest.classes), **spec.model_args)
    load_weights(network, weights)
    preprocess = Preprocess.model_validate(record["preprocess"])
    normalize = Normalize(*resolve_statistics(preprocess, job.manifest.statistics))
    network.to(memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format)
    teacher = Teacher(network.to(fabric.device), normalize.to(fabric.device), recipe.channels_last)
    measured = validate(teacher, preprocess)["top1"]
    fabric.print(
        f"{job.name}: teacher {job.page.teacher(job.run)} scores {measured:.2f} % top-1 on the validation images"
    )
    metrics = job.teacher_folder / "metrics.json"
    if metrics.exists():
        expected = _read_json(metrics, job)["top1"]
        if measured < expected - TEACHER_TOLERANCE:
            raise UserError(
                f"{weights}: this teacher scores {measured:.2f} % top-1 on the validation images, but {expected:.2f} % "
                f"stands in {metrics}; train or import it anew"
            )
    return teacher


def _read_json(path: Any, job: Job) -> dict[str, Any]:  # noqa: ANN401
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        teacher = job.page.teacher(job.run)
        raise UserError(f"{path}: missing; first make it with: distillery train {job.page.path} {teacher}") from None
    except ValueError:
        raise UserError(f"{path}: not valid JSON; make it anew") from None
    return content
