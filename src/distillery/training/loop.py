"""The training loop: one function a level (run, epoch, step), to be read from top to bottom.

It knows no method by name: whatever a run is trained for is inside its learner.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn

from distillery.cluster.signals import Interrupted, StopSignal, end_children
from distillery.data.loader import Batch, said_every_minute
from distillery.data.orders import labelled_part
from distillery.data.samplers import GlobalBatches
from distillery.distill.bank import Bank, moved
from distillery.distill.step import Labelled, Outputs
from distillery.distill.student import Learner
from distillery.distill.teacher import Several, Teacher
from distillery.distill.term import CalibrationBatches
from distillery.errors import UserError
from distillery.experiment.schema.recipe import Recipe
from distillery.models.weights import save_weights, weights_sha256
from distillery.randomness import seed_generators
from distillery.training.alarms import Alarms
from distillery.training.checkpoint import CheckpointFolder, TrainState
from distillery.training.epoch_sums import EpochSums, Recent, StepValues, added, totals_of_rank, totals_of_ranks
from distillery.training.metric_logger import MetricLogger
from distillery.training.mixing import Mixing
from distillery.training.optim import learning_rate, total_epochs
from distillery.training.speed import Speed

# Every look waits for the device.
STEPS_BETWEEN_LOOKS = 50
# After so many, or one epoch, run.json says what the weights are, so that these steps can be taken again and compared.
FIRST_STEPS = 20
# With `on_nan: skip`, so many steps in a row that were left out end a run.
MOST_SKIPPED = 10
# What banks hold of a micro-batch: the one teacher's answers, or those of several.
Stored = Outputs | tuple[Outputs, ...] | None
Answered = Iterator[tuple[Batch, Stored]]


@dataclass
class Training:
    """Everything a run works with, as ``training.build`` makes it."""

    name: str
    fabric: Fabric
    recipe: Recipe
    seed: int
    learner: _FabricModule  # the Learner as precision and DDP wrap it
    bare: Learner  # the same, unwrapped
    teacher: Teacher | None
    bank: Bank | None  # in the teacher's place, its answers of before
    several: Several | None  # teachers, in place of one
    scores: Any  # of the teacher, for run.json; a list of those of several
    head: dict[str, Any] | None  # what run.json says of the head that is deployed with the student
    mix: Mixing | None
    optimizer: torch.optim.Optimizer
    ema: Any | None  # timm's ModelEmaV3 of the student
    batches: GlobalBatches
    accumulation: int
    labelled_share: float | None  # of each batch; None where all images have labels
    train_loader: Iterable[Batch]
    calibration_batches: Callable[[int], CalibrationBatches]  # of an epoch
    validate: Callable[[nn.Module], dict[str, float]]
    train_state: TrainState
    checkpoints: CheckpointFolder
    checkpoint_seconds: float
    metric_logger: MetricLogger
    alarms: Alarms
    stop: StopSignal
    began: float  # time.monotonic() when this session began
    speed: Speed  # what was taken of the machine's choices


def fit(training: Training) -> None:
    """Train from where the run stands to its last epoch."""
    train_state, epochs = training.train_state, total_epochs(training.recipe)
    training.metric_logger.begin(training.name, epochs, training.batches.steps, train_state)
    saved_at = time.monotonic()
    while train_state.epoch < epochs:
        if train_state.step < training.batches.steps:
            saved_at = _train_epoch(training, saved_at)
        row = _close_epoch(training)
        train_state.history.append(row)
        training.metric_logger.epoch(row)
        train_state.epoch, train_state.step, train_state.sums = train_state.epoch + 1, 0, []
        saved_at = _save_if_due(training, saved_at)
    training.metric_logger.end()


def first_steps(training: Training) -> int:
    """How many of a run's steps can be taken again and compared."""
    return min(FIRST_STEPS, training.batches.steps)


def take_first_steps(training: Training) -> None:
    """Take them, at a run's beginning; what came out stands in the run's session."""
    training.metric_logger.begin(training.name, 1, first_steps(training), training.train_state)
    _train_epoch(training, time.monotonic(), first_steps(training))
    training.metric_logger.end()


def _train_epoch(training: Training, saved_at: float, last: int | None = None) -> float:
    """Take the optimizer steps that are left of the current epoch, or of its first ``last``."""
    train_state = training.train_state
    sums = EpochSums(totals_of_rank(training.fabric, train_state.sums))
    if train_state.step == 0:
        with training.metric_logger.timed("calibration"):
            training.bare.objective.begin_epoch(train_state.epoch, training.calibration_batches(train_state.epoch))
    training.learner.train()
    training.batches.start(train_state.epoch, train_state.step)
    batches = zip(training.train_loader, _stored_answers(training), strict=False)
    first = train_state.step
    for step in range(first, last or training.batches.steps):
        batch = _first_batch(training, batches)
        # Asked where all processes have their images and nothing of the step is done: they stop together, at once. What
        # stands before the first step was saved before, unless by the end of the epoch before it.
        saved_at = _save_if_due(training, saved_at, sums, may_be_due=step > first)
        _train_step(training, step, batch, batches, sums)
        train_state.step = step + 1
        if train_state.epoch == 0 and train_state.step == first_steps(training):
            weights = weights_sha256(training.bare.student) if training.fabric.is_global_zero else None
            train_state.sessions[-1]["first_steps"] = {"steps": train_state.step, "weights_sha256": weights}
        training.metric_logger.step(training.batches.step_images(step), sums.means)
        if train_state.step % STEPS_BETWEEN_LOOKS == 0 or train_state.step == training.batches.steps:
            _look(training, sums)
    saved_at = _save_if_due(training, saved_at, sums)
    train_state.sums = totals_of_ranks(training.fabric, sums.totals())
    training.alarms.close_epoch()
    return saved_at


def _first_batch(training: Training, batches: Answered) -> tuple[Batch, Stored] | None:
    """A step's first micro-batch; None where a signal came, for this ends the wait, and then the run."""
    try:
        with training.stop.interrupting():
            return _next_batch(training, batches)
    except Interrupted:
        end_children()
        return None


def _next_batch(training: Training, batches: Answered) -> tuple[Batch, Stored]:
    asked = time.monotonic()
    with said_every_minute():
        batch, answers = next(batches)
        batch = batch.to(training.fabric.device, non_blocking=True)
    waited = time.monotonic() - asked
    training.metric_logger.took("data_wait", waited)
    training.alarms.waited(waited)
    return batch, answers


def _stored_answers(training: Training) -> Iterator[Stored]:
    """The teachers' answers to the epoch's micro-batches from here on, where they are in banks."""
    pin_memory = training.fabric.device.type == "cuda"
    if training.several is not None:
        return training.several.stored(training.batches, pin_memory)
    if training.bank is None:
        return repeat(None)
    return training.bank.answers(training.batches, pin_memory=pin_memory)


def _train_step(
    training: Training, step: int, first: tuple[Batch, Stored] | None, batches: Answered, sums: EpochSums
) -> None:
    """One optimizer step over one global batch, in as many micro-batches as the devices need."""
    fabric, recipe, optimizer = training.fabric, training.recipe, training.optimizer
    epoch = training.train_state.epoch
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, epoch, step, training.batches.steps)
    images_in_step = training.batches.step_images(step)
    before = _moving_state(training) if recipe.on_nan == "skip" else []
    counted = []
    training.alarms.begin_step(step)
    for micro in range(training.accumulation):
        # Later micro-batches are waited for to their end: the step has begun to move running statistics.
        batch, answers = _next_batch(training, batches) if first is None or micro else first
        images, target = _mixed(training, batch.images, batch.labels, step)
        second = None if batch.view is None else _mixed(training, batch.view, batch.labels, step)[0]
        size = batch.images.shape[-1]
        seen, again = (_mixed_alike(training, own, size, step) for own in (batch.teacher_images, batch.teacher_view))
        seed_generators(training.seed, "forward", epoch, step, micro, fabric.global_rank)
        with fabric.no_backward_sync(training.learner, enabled=micro + 1 < training.accumulation):
            fraction, now = images_in_step / recipe.batch, epoch + step / training.batches.steps
            labelled = _labelled(training, batch, images_in_step)
            with fabric.autocast():
                teacher = moved(answers, fabric.device) if isinstance(answers, Outputs) else None
                view: tuple[Tensor, Outputs | None] | None = None if second is None else (second, None)
                if training.teacher:
                    teacher = training.teacher(images if seen is None else seen)
                    if second is not None and not training.bare.partners:
                        view = (second, training.teacher(second if again is None else again))
                if training.several is not None:
                    own = [_mixed_alike(training, further, size, step) for further in batch.further_images or ()]
                    squares = [image for image in (images, seen, *own) if image is not None]
                    found = [moved(each, fabric.device) for each in answers or () if isinstance(each, Outputs)]
                    teacher = training.several.answer(squares, found)
                # Past Fabric's wrapper, whose conversions and hooks change nothing: the objective widens its inputs.
                forward = training.learner._forward_module
                values, logits_BC = forward(images, target, teacher, fraction, now, batch.indices, view, labelled)
            training.alarms.heard(teacher, target, batch.labelled)
            # DDP averages gradients over ranks; the share turns that mean into the mean over the global batch.
            share = images.shape[0] * fabric.world_size / images_in_step
            fabric.backward(values["loss"] if share == 1 else values["loss"] * share)
        counted.append((values, logits_BC, target, batch.indices, batch.labelled))
    training.alarms.end_step()
    if recipe.on_nan == "skip" and _is_broken(training, [values for values, *_ in counted]):
        _leave_out(training, [StepValues(step, values, ids) for values, _, _, ids, _ in counted], before)
        return
    training.train_state.skipped_in_row = 0
    for part in counted:
        sums.add(step, *part)
    if recipe.clip_norm is not None:
        # A norm that is not finite is for a scaler, or the next look, to find: asking here would wait for the device.
        fabric.clip_gradients(training.learner, optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    training.bare.objective.end_step()
    if training.ema is not None:
        training.ema.update(training.bare.student)


def _moving_state(training: Training) -> list[tuple[Tensor, Tensor]]:
    """Whatever a forward pass may move, the statistics of batch norms above all, with copies of it as it is."""
    own = {f"objective.{name}" for name in training.bare.objective.own_buffers()}
    return [(buffer, buffer.clone()) for name, buffer in training.bare.named_buffers() if name not in own]


@torch.no_grad()
def _is_broken(training: Training, values: list[dict[str, Tensor]]) -> bool:
    """Whether a step's loss or gradient is NaN or infinite, in any process."""
    parts = [part for each in values for part in each.values()]
    if getattr(training.fabric.strategy.precision, "scaler", None) is None:
        # A scaler looks at gradients itself, and expects infinite ones now and then.
        parts += [parameter.grad for parameter in training.bare.parameters() if parameter.grad is not None]
    largest = torch.stack([norm.float() for norm in torch._foreach_norm(parts, float("inf"))])
    broken = training.fabric.all_reduce((~largest.isfinite().all()).float(), reduce_op="sum")
    assert isinstance(broken, Tensor)
    return bool(broken)


def _leave_out(training: Training, seen: list[StepValues], before: list[tuple[Tensor, Tensor]]) -> None:
    """Leave a step out: its update, its sums, and what its forward pass has moved.

    Raises:
        UserError: it is one too many in a row.
    """
    train_state, step = training.train_state, seen[0].step + 1
    training.optimizer.zero_grad(set_to_none=True)
    training.bare.objective.end_step()
    for buffer, saved in before:
        buffer.copy_(saved)
    what = Recent(seen).first_broken() or f"step {step}: the gradient, or the loss in another process"
    train_state.skipped.append({"epoch": train_state.epoch + 1, "step": step, "what": what})
    train_state.skipped_in_row += 1
    training.metric_logger.say(
        f"{training.name}: warning: epoch {train_state.epoch + 1}, left out because of NaN or infinity: {what}"
    )
    if train_state.skipped_in_row >= MOST_SKIPPED:
        raise _diverged(training, f"{MOST_SKIPPED} steps in a row were left out, the last of them ({what})")


def _labelled(training: Training, batch: Batch, images_in_step: int) -> Labelled | None:
    """Which images of a micro-batch have labels, where not all have; None says that all do."""
    if training.labelled_share is None:
        return None
    rows = torch.arange(len(batch.labels), device=batch.labels.device) if batch.labelled is None else batch.labelled
    return Labelled(rows, labelled_part(images_in_step, training.labelled_share) / images_in_step)


def _mixed(training: Training, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Images and target of a micro-batch, mixed if the recipe says so; every view of an image in the same way."""
    return training.mix(images, labels, training.train_state.epoch, step) if training.mix else (images, labels)


def _mixed_alike(training: Training, images: Tensor | None, size: int, step: int) -> Tensor | None:
    """The squares that only the teacher sees, mixed as the student's of ``size`` pixels a side."""
    if images is None or training.mix is None:
        return images
    return training.mix.alike(images, size, training.train_state.epoch, step)


def _look(training: Training, sums: EpochSums) -> None:
    """Look at the steps since the last look; end in all processes when a loss is NaN or infinite in one."""
    recent, fabric = sums.take_recent(), training.fabric
    if not recent.seen:
        return
    values = recent.values()
    waits = torch.full_like(values[:1], training.alarms.wait)
    # All that is asked of the device, at once: (ranks, micro-batches and the wait, names).
    gathered = fabric.all_gather(torch.cat([values, waits])) if fabric.world_size > 1 else torch.cat([values, waits])
    assert isinstance(gathered, Tensor)
    everywhere = gathered.cpu().view(fabric.world_size, len(values) + 1, -1)
    summed = everywhere[:, :-1].sum(dim=0)
    if not bool(summed.isfinite().all()):
        where = recent.first_broken() or f"step {recent.seen[-1].step + 1} or before, in another process"
        raise _diverged(training, f"the loss is NaN or infinite ({where})")
    steps = [each.step for each in recent.seen[:: training.accumulation]]
    by_step = summed.view(len(steps), training.accumulation, -1).sum(dim=1).T.tolist()
    terms = {name: by_step[place] for place, name in enumerate(recent.seen[0].values) if name != "loss"}
    training.alarms.look(steps, terms, float(everywhere[:, -1].max()))


class Diverged(UserError):
    """A loss or weight that is NaN or infinite ended a run."""


def _diverged(training: Training, what: str) -> Diverged:
    recipe = training.recipe
    return Diverged(
        f"{training.name}: {what} in epoch {training.train_state.epoch + 1}; "
        f"lower optimizer.lr (now {recipe.optimizer.lr:g}), set clip_norm, or use precision 32-true"
    )


def check_weights_finite(training: Training) -> None:
    """See that no broken weight is ever saved: the last step's loss may have been finite.

    Raises:
        UserError: a weight of the student or its average, or of the objective, is NaN or infinite.
    """
    networks = [training.bare] + ([] if training.ema is None else [training.ema.module])
    for network in networks:
        statistics = [(name, value) for name, value in network.named_buffers() if "running_" in name]
        for name, value in (*network.named_parameters(), *statistics):
            if not bool(value.isfinite().all()):
                raise _diverged(training, f"weight {name} is NaN or infinite after step {training.train_state.step}")


def _close_epoch(training: Training) -> dict[str, float]:
    """Validate, keep the weights if they are the best, and return the epoch's row of history.csv."""
    train_state, recipe = training.train_state, training.recipe
    counted = added(train_state.sums)
    images = counted.pop("images")
    if not images:
        raise _diverged(training, "all steps were left out")
    correct, labelled = counted.pop("correct"), counted.pop("labelled")
    row = {"epoch": train_state.epoch + 1, "lr": learning_rate(recipe, train_state.epoch, 0, training.batches.steps)}
    row |= {f"train_{name}": value / images for name, value in counted.items()}
    row |= {"train_top1": 100 * correct / labelled} if labelled else {}
    check_weights_finite(training)
    with training.metric_logger.timed("validation"):
        measured = training.validate(training.bare.student)
        row |= {f"val_{name}": measured[name] for name in ("loss", "top1", "top5")}
        if training.ema is not None:
            averaged = training.validate(training.ema.module)
            row |= {f"ema_val_{name}": averaged[name] for name in ("loss", "top1", "top5")}
    if recipe.selection == "best" and max(row["val_top1"], row.get("ema_val_top1", -1.0)) > train_state.best_top1:
        train_state.best_top1 = max(row["val_top1"], row.get("ema_val_top1", -1.0))
        train_state.best_epoch = train_state.epoch + 1
        if training.fabric.is_global_zero:
            path = training.checkpoints.best_path(train_state.best_epoch)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(chosen_weights(training, row)[1], path)
    return row


def chosen_weights(training: Training, row: dict[str, float]) -> tuple[str, nn.Module]:
    """Of the raw and the averaged weights, the better ones on the validation images of an epoch."""
    if training.ema is not None and row["ema_val_top1"] > row["val_top1"]:
        return "ema", training.ema.module
    return "raw", training.bare.student


def _save_if_due(
    training: Training, saved_at: float, sums: EpochSums | None = None, *, may_be_due: bool = True
) -> float:
    """Write a checkpoint if it is time, and end here if that was asked; return when one was written."""
    due = may_be_due and time.monotonic() - saved_at >= training.checkpoint_seconds
    if not training.stop.should_save(due):
        return saved_at
    if sums is not None:
        _look(training, sums)
        training.train_state.sums = totals_of_ranks(training.fabric, sums.totals())
    if training.fabric.is_global_zero:
        with training.metric_logger.timed("saving"):
            check_weights_finite(training)
            training.metric_logger.flush()
            note_session(training)
            training.checkpoints.save(state_of(training))
    training.stop.check()
    return time.monotonic()


def note_session(training: Training) -> None:
    """Note in the run's state how long this session has lasted."""
    training.train_state.sessions[-1]["seconds"] = round(time.monotonic() - training.began, 1)


def state_of(training: Training) -> dict[str, Any]:
    """Everything that the next step depends on besides the spec; no generator state, for nothing draws from one."""
    scaler = getattr(training.fabric.strategy.precision, "scaler", None)
    return {
        "learner": training.bare.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "ema": None if training.ema is None else training.ema.module.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "train_state": vars(training.train_state),
    }


def restore(training: Training, state: dict[str, Any], path: Path) -> None:
    """Continue from a checkpoint's state.

    Raises:
        UserError: it is of another network, objective or optimizer.
    """
    try:
        _restore(training, state)
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: does not fit this run ({reason}); remove {path.parent} to train from the beginning"
        ) from None


def _restore(training: Training, state: dict[str, Any]) -> None:
    training.bare.load_state_dict(state["learner"])
    for group, saved in zip(training.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True):
        # How a step is taken is no part of the state.
        saved |= {key: group[key] for key in ("fused", "foreach") if key in group}
    training.optimizer.load_state_dict(state["optimizer"])
    for parameter, kept in training.optimizer.state.items():
        for name, value in kept.items():
            # Fused steps want the memory format of the weights, which is the machine's choice, too.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if training.ema is not None:
        training.ema.module.load_state_dict(state["ema"])
    scaler = getattr(training.fabric.strategy.precision, "scaler", None)
    # There is none after a session in another precision.
    if scaler is not None and state["scaler"] is not None:
        scaler.load_state_dict(state["scaler"])
    vars(training.train_state).update(state["train_state"])
