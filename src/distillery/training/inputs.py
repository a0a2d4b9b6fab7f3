"""A run's images on their way to its networks: training batches, calibration batches, measurements."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from distillery.data.arrow import HIDDEN, ArrowImages
from distillery.data.dali import DaliLoader
from distillery.data.labels import choose_labelled, listed_images
from distillery.data.loader import Batch, SecondView, eval_loader, eval_parts, train_loader
from distillery.data.manifest import TRAINING, SplitName
from distillery.data.memory import MemoryEvaluation, MemoryTraining, fits, squares_of
from distillery.data.orders import (
    ClassPartners,
    Ids,
    Order,
    cycled_order,
    flow_sample,
    mixed_order,
    partner_order,
    repeated_order,
    shuffled_order,
)
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import Transform, eval_transform, train_transform
from distillery.data.weights import fetched
from distillery.distill.collective import Collective
from distillery.distill.step import StepInputs
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Teacher
from distillery.distill.term import CalibrationBatches
from distillery.errors import UserError, located
from distillery.evaluation.metrics import evaluate_model
from distillery.experiment.schema.labels import LabelList
from distillery.experiment.schema.objective import Needs
from distillery.experiment.schema.recipe import Preprocess, Recipe
from distillery.training.job import Job, LoaderName

EVALUATION_BATCH = 256

# Orders of the training images that a term may ask for, by name: of labels, seed and the term's arguments.
ORDERS: dict[str, Callable[..., Order]] = {"partners": partner_order}

# The operations that images in memory are augmented by, as `transforms.Transform.batched` knows them.
BATCHED = frozenset({"random_crop", "horizontal_flip"})

Validate = Callable[[Callable[[Tensor], Tensor], Preprocess], dict[str, float]]


def training_images(job: Job) -> ArrowImages:
    """The training images, with the labels that the run may use.

    Raises:
        UserError: it may use none of them, or all, in other words than `all`.
    """
    splits: list[SplitName] = [split for split in TRAINING if split in job.manifest.splits]
    images = ArrowImages(job.data_folder, job.manifest, *(splits or TRAINING[:1]))
    few = job.spec.labels
    if few is None:
        return images
    there = int((images.labels != HIDDEN).sum())
    with located(job.where):
        if there == 0 and few.labels != 0:
            raise UserError("labels: no training image of the data set has a label; write labels: 0")
        if isinstance(few.labels, LabelList):
            return images.with_labels_of(listed_images(images, there, Path(fetched(few.labels.list)).expanduser()))
        count = few.count(there)
    return images.with_labels_of(choose_labelled(images.labels[:there], count, job.seed) if count else np.arange(0))


def _used(job: Job, images: ArrowImages) -> Ids:
    """The images that a run is trained on."""
    if job.spec.labels is not None and job.spec.labels.images == "labelled":
        return np.flatnonzero(images.labels != HIDDEN)
    return np.arange(len(images))


def build_batches(job: Job, recipe: Recipe, fabric: Fabric, images: ArrowImages, accumulation: int) -> GlobalBatches:
    """Cut an epoch's order into global batches.

    Raises:
        UserError: a batch is larger than the data, or too small for its parts.
    """
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
            crops=recipe.crops,
            paired=recipe.mix is not None,
        )
    if batches.steps == 0:
        raise UserError(
            f"{job.where}.batch: {recipe.batch} is more than the {len(images)} training images; "
            "lower it or set `drop_last: false`"
        )
    return batches


def bank_order(job: Job, recipe: Recipe, images: ArrowImages) -> Order:
    """The samples that each part of a bank holds: all images of a view, or those of an epoch's steps."""
    if recipe.crops is not None:
        return lambda view: np.arange(len(images))
    order = _order(job, recipe, images)
    length = len(order(0))
    used = length // recipe.batch * recipe.batch if recipe.drop_last else length
    return lambda epoch: order(epoch)[:used]


def _order(job: Job, recipe: Recipe, images: ArrowImages) -> Order:
    """An epoch's order. With few labels it is as long as with all, so that all runs of a recipe take the same steps."""
    few = job.spec.labels
    if few is None or few.labels == 0:
        return _whole_order(job, recipe, images.labels)
    is_labelled = images.labels != HIDDEN
    labelled = np.flatnonzero(is_labelled)
    if few.labelled_share is not None:
        return mixed_order(labelled, np.flatnonzero(~is_labelled), job.seed, recipe.batch, few.labelled_share)
    length = len(_whole_order(job, recipe, np.zeros_like(images.labels))(0))
    order = cycled_order(_whole_order(job, recipe, images.labels[labelled]), length)
    return lambda epoch: labelled[order(epoch)]


def _whole_order(job: Job, recipe: Recipe, labels: Ids) -> Order:
    assert job.spec.objective is not None
    asked = job.spec.objective.sampling()
    if asked is not None:
        return ORDERS[asked.order](labels, job.seed, **asked.arguments)
    if recipe.repeats > 1:
        return repeated_order(len(labels), job.seed, recipe.repeats)
    return shuffled_order(len(labels), job.seed)


def build_train_loader(
    job: Job,
    recipe: Recipe,
    fabric: Fabric,
    images: ArrowImages,
    batches: GlobalBatches,
    viewer: Preprocess | None = None,
    *further: Preprocess,
) -> Iterable[Batch]:
    """Load augmented batches with the machine's loader; ``viewer`` says how a teacher sees other squares than these.

    Of several such teachers, ``further`` has the others.

    Raises:
        UserError: the loader cannot give what the objective needs.
    """
    assert job.spec.objective is not None
    transform, teacher = training_transforms(job, recipe, viewer)
    view = _second_view(job, recipe, images, job.spec.objective.needs(), viewer)
    seed = view_seed(job, recipe)
    if job.machine.loader == "dali":
        if fabric.device.type == "mps":
            raise UserError("--loader: 'dali' is NVIDIA's, and does nothing for an Apple GPU; use torch")
        if view is not None:
            raise UserError("--loader: 'dali' gives one view of an image, but the objective needs two; use torch")
        if teacher is not None:
            raise UserError("--loader: 'dali' cuts an image once, but the teacher sees another size or crop; use torch")
        return DaliLoader(images, transform, batches, seed, job.machine.workers, fabric.device)
    operations = [*recipe.augment, *((recipe.augment_view or ()) if view is not None else ())]
    others = [operation.name for operation in operations if operation.name not in BATCHED]
    if job.machine.loader == "memory" and others:
        raise UserError(
            f"--loader: 'memory' does {' and '.join(sorted(BATCHED))} only, but the recipe of {job.name} says "
            f"{', '.join(others)}; use torch"
        )
    more = [training_transforms(job, recipe, own)[1] for own in further]
    if not others and all(
        _in_memory(job, fabric, images, seen) for seen in (recipe.preprocess, viewer, *further) if seen
    ):
        squares = squares_of(images, recipe.preprocess, fabric.device)
        own = None if teacher is None or viewer is None else (teacher, squares_of(images, viewer, fabric.device))
        pairs = [
            (prepared, squares_of(images, seen, fabric.device))
            for prepared, seen in zip(more, further, strict=True)
            if prepared is not None
        ]
        return MemoryTraining(images, transform, batches, seed, squares, view, own, pairs)
    pinned = fabric.device.type == "cuda"
    known = [prepared for prepared in more if prepared is not None]
    cache = job.machine.cache
    return train_loader(images, transform, batches, seed, job.machine.workers, pinned, view, teacher, known, cache)


def _second_view(
    job: Job, recipe: Recipe, images: ArrowImages, needs: Needs, viewer: Preprocess | None
) -> SecondView | None:
    if not needs.view and not needs.partner:
        return None
    augment = recipe.augment if recipe.augment_view is None else recipe.augment_view
    mean = job.manifest.statistics.mean
    unseen = viewer is None or needs.partner
    teacher = None if unseen else train_transform(recipe.preprocess, augment, mean, viewer)
    partner = ClassPartners(images.labels, job.seed) if needs.partner else None
    return SecondView(train_transform(recipe.preprocess, augment, mean), teacher, partner)


def _in_memory(job: Job, fabric: Fabric, images: ArrowImages, preprocess: Preprocess) -> bool:
    chosen = job.machine.loader
    return chosen == "memory" or (chosen == "auto" and fits(images, preprocess, fabric.device))


def loader_name(loader: Iterable[Batch]) -> LoaderName:
    """Which loader it is, for run.json."""
    return "memory" if isinstance(loader, MemoryTraining) else "dali" if isinstance(loader, DaliLoader) else "torch"


def training_transforms(job: Job, recipe: Recipe, viewer: Preprocess | None) -> tuple[Transform, Transform | None]:
    """How training images are prepared for the student, and for a teacher that sees other squares."""
    mean = job.manifest.statistics.mean
    teacher = None if viewer is None else train_transform(recipe.preprocess, recipe.augment, mean, viewer)
    return train_transform(recipe.preprocess, recipe.augment, mean), teacher


def view_seed(job: Job, recipe: Recipe) -> int:
    """Of what augments the images: the run's, or with ``crops`` one that all runs share."""
    return job.seed if recipe.crops is None else 0


def build_validate(job: Job, fabric: Fabric, split: SplitName) -> Validate:
    """Measure any network on the images of a split, each image once over all ranks."""
    images = ArrowImages(job.data_folder, job.manifest, split)
    kept: dict[Preprocess, Iterable[Batch]] = {}

    def validate(predict: Callable[[Tensor], Tensor], preprocess: Preprocess) -> dict[str, float]:
        # The loader of last time with its workers, unless the teacher wanted its images prepared in another way.
        if preprocess not in kept:
            kept.clear()
            kept[preprocess] = plain_loader(job, fabric, images, preprocess, persistent=True)
        with fabric.autocast():
            measured = evaluate_model(predict, kept[preprocess], len(job.manifest.classes), fabric.device)
        return {"loss": measured["nll"], "top1": measured["top1"], "top5": measured["top5"]}

    return validate


def validate_student(
    validate: Validate, learner: Learner, recipe: Recipe, collective: Collective
) -> Callable[[nn.Module], dict[str, float]]:
    """Measure the student, or an average of it, as the recipe prepares its images.

    Each rank counts its own batch statistics; all measure with the first one's, for those are saved.
    """

    def measure(network: nn.Module) -> dict[str, float]:
        network.eval()
        for buffer in network.buffers():
            buffer.copy_(collective.broadcast(buffer))
        extractor = FeatureExtractor(network, learner.normalize, None, [], recipe.channels_last)
        return validate(lambda images: extractor(images).logits_BC, recipe.preprocess)

    return measure


def build_calibration(
    job: Job,
    recipe: Recipe,
    fabric: Fabric,
    images: ArrowImages,
    learner: Learner,
    teacher: Teacher | None,
    viewer: Preprocess | None,
) -> Callable[[int], CalibrationBatches]:
    """For an epoch, training images prepared as for evaluation, both networks in evaluation mode.

    ``viewer`` says how a teacher sees other squares than the student.
    """

    @torch.no_grad()
    def batches(epoch: int, limit: int) -> Iterator[StepInputs]:
        learner.eval()
        used = _used(job, images)
        chosen = used[flow_sample(len(used), job.seed, epoch, limit)]
        with teacher.as_evaluated() if teacher else nullcontext():
            own = None if viewer is None else iter(plain_loader(job, fabric, images, viewer, chosen))
            for batch in plain_loader(job, fabric, images, recipe.preprocess, chosen):
                shown = batch.to(fabric.device, non_blocking=True)
                seen = shown if own is None else next(own).to(fabric.device, non_blocking=True)
                with fabric.autocast():
                    answers = teacher(seen.images) if teacher else None
                    inputs = StepInputs(learner.extractor(shown.images), shown.labels, answers)
                yield inputs._replace(indices_B=shown.indices).widened()

    return lambda epoch: lambda limit: batches(epoch, limit)


def plain_loader(
    job: Job,
    fabric: Fabric,
    images: ArrowImages,
    preprocess: Preprocess,
    indices: Ids | None = None,
    persistent: bool = False,
) -> Iterable[Batch]:
    """This rank's share of the images, prepared as for evaluation."""
    if _in_memory(job, fabric, images, preprocess):
        parts = eval_parts(len(images), EVALUATION_BATCH, fabric.world_size, fabric.global_rank, indices)
        return MemoryEvaluation(images, squares_of(images, preprocess, fabric.device), parts)
    return eval_loader(
        images,
        eval_transform(preprocess),
        batch=EVALUATION_BATCH,
        workers=job.machine.workers,
        world_size=fabric.world_size,
        rank=fabric.global_rank,
        pin_memory=fabric.device.type == "cuda",
        indices=indices,
        persistent=persistent,
    )
