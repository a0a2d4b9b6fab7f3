"""Distillation inside a training loop that is not Distillery's: one module that gives a loss.

B batch, C classes, H W pixels.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from distillery.distill.assembly import Side, TeacherSide, assemble
from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import Term, TermContext
from distillery.errors import UserError
from distillery.experiment.reading import validate
from distillery.experiment.schema.objective import Objective, terms_with_teacher

Prepare = Callable[[Tensor], Tensor]


class Distiller(nn.Module):
    """A student with its objective, which a teacher answers: images and labels to a loss.

        distiller = Distiller(student, teacher, {"ce": {}, "mgd": {}}, size=224)
        optimizer = SGD(distiller.parameters(), lr=0.1)
        loss = distiller(images, labels)

    Its parameters and its state are those of the student and of what terms learn and remember; the teacher is no part
    of either. It stays in evaluation mode whatever ``train()`` is called on, apart from batch norms that are to use a
    batch's statistics, and goes along to another device. Terms act after each step of an optimizer of these parameters
    by themselves.

    Args:
        student: takes float images (B, 3, H, W) as its own training prepares them, and gives logits (B, C). A term
            that deploys a head takes its last layer out, in place; ``distiller.student`` is what is to be kept.
        teacher: likewise; it is frozen, in place. None where no term learns from one.
        objective: terms by name with their options, as under `objective:` of an experiment.
        size: side in pixels of the student's images.
        teacher_size: of the teacher's, where ``prepare_teacher`` makes them another size.
        prepare_teacher: makes the teacher's images of the student's, where it was trained with others: another mean and
            deviation, another size.
        teacher_norm: the teacher's batch norms use their running statistics (``eval``) or a batch's (``batch``); by
            default what the terms' authors do.
        epochs: how many the training has, for terms that must know.
        train_labels: the class of every training image, for terms that remember images by their ``indices``.
        channels_last: the memory format of both networks and their images.
        seed: of what terms draw.

    Raises:
        UserError: a name, an option or a network does not fit; the line says which, and what would.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        objective: Mapping[str, Any] | Objective = {"ce": {}},  # noqa: B006
        *,
        size: int,
        teacher_size: int | None = None,
        prepare_teacher: Prepare | None = None,
        teacher_norm: Literal["eval", "batch"] | None = None,
        epochs: int | None = None,
        train_labels: Sequence[int] | npt.NDArray[np.int64] | Tensor | None = None,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = objective if isinstance(objective, Objective) else validate(Objective, objective, Path("objective"))
        _check_objective(config, teacher, epochs, train_labels is not None)
        _check_networks(student, teacher)
        self.needs = config.needs()
        self.classes = _classes(student, "student", size)
        if teacher is not None and self.needs.teacher & {"logits", "classifier"}:
            theirs = _classes(teacher, "teacher", teacher_size or size)
            if theirs != self.classes:
                raise UserError(
                    f"teacher: it has {theirs} classes, and the student {self.classes}; a term compares them"
                )
        labels = np.zeros(0, dtype=np.int64) if train_labels is None else _class_list(train_labels, self.classes)
        self.images = len(labels)

        run = TermContext(
            collective=_PresentProcesses(), labels=labels, classes=self.classes, epochs=epochs or 1, seed=seed
        )
        teachers = []
        if teacher is not None:
            name = f"teacher {type(teacher).__name__}"
            teachers = [TeacherSide(teacher, name, teacher_size or size, nn.Identity())]
        assembled = assemble(
            Side(student, f"student {type(student).__name__}", size, nn.Identity()),
            teachers,
            config,
            run,
            teacher_norm=teacher_norm or config.default_teacher_norm(),
            channels_last=channels_last,
        )
        self.learner = assembled.learner
        self.teacher = assembled.teachers[0] if assembled.teachers else None
        self.prepare_teacher = prepare_teacher
        self.by_labels = [name for name, options in config.terms().items() if options.needs.labels]
        self.remembering = [name for name, options in config.terms().items() if _remembers(options)]
        self.epoch, self.begun, self.step_is_open = 0.0, False, False
        self.values: dict[str, Tensor] = {}
        self.logits: Tensor | None = None
        device = next(student.parameters()).device
        self.learner.to(device)
        if teacher is not None:
            teacher.to(device)
        own = [f"learner.objective.{name}" for name in self.learner.objective.own_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, own)  # type: ignore[no-untyped-call]
        if any(type(term).end_step is not Term.end_step for _, term in self.learner.objective.each()):
            _stepping.add(self)

    @property
    def student(self) -> nn.Module:
        """The network that learns, with the head that a term deploys with it."""
        return self.learner.student

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, indices: Tensor | None = None, view: Tensor | None = None
    ) -> Tensor:
        """Return what is to be minimised; ``values`` then holds each term's value, ``logits`` the student's answers.

        Args:
            images: floats (B, 3, H, W) as the student takes them.
            labels: class indices (B,) or soft labels (B, C).
            indices: each image's position in the training set, (B,), where a term asks for it.
            view: another augmentation of the same images, or other images of the same classes, where a term asks for
                it.

        Raises:
            UserError: one of them is missing, or of another kind, shape or device.
        """
        target = self._checked(images, labels, indices, view)
        self._settle_teacher()
        if not self.begun:
            self._begin([images.detach()], short=True)
        teacher = self._answers(images)
        seen = None if view is None else (view, None if self.needs.partner else self._answers(view))
        values, logits_BC = self.learner(images, target, teacher, 1.0, self.epoch, indices, seen)
        self.values = {name: value.detach() for name, value in values.items()}
        self.logits = logits_BC.detach()
        self.step_is_open = self.training
        loss: Tensor = values["loss"]
        return loss

    def begin_epoch(self, epoch: int, batches: Iterable[Any] | None = None) -> None:
        """Say that an epoch begins, counted from 0: weights and temperatures follow it, and channels are matched anew.

        Args:
            epoch: its number. ``distiller.epoch = 3.5`` says more exactly where one is.
            batches: training images as for evaluation, for terms that look at some: tensors, or lists that begin with
                one, such as a DataLoader gives; under DDP, each process its share. Without, the next batch stands in.
        """
        self.epoch, self.begun = float(epoch), False
        if batches is not None:
            self._settle_teacher()
            self._begin(batches)

    def no_weight_decay(self) -> set[str]:
        """What the student exempts from weight decay, for optimizers that ask."""
        exempt: set[str] = getattr(self.student, "no_weight_decay", set)()
        return {f"learner.student.{name}" for name in exempt}

    def get_extra_state(self) -> Tensor:
        """Where the training stands, for ``state_dict``."""
        return torch.tensor([self.epoch, float(self.begun)], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.epoch, self.begun = float(state[0]), bool(state[1])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move and cast the teacher along."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.teacher is not None:
            self.teacher.extractor.network._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def _answers(self, images: Tensor) -> Outputs | None:
        if self.teacher is None:
            return None
        with torch.no_grad():
            return self.teacher(images if self.prepare_teacher is None else self.prepare_teacher(images))

    def _settle_teacher(self) -> None:
        """Back to evaluation: whoever holds the teacher in a module of his own may have called ``train()`` on it."""
        if self.teacher is not None and self.teacher.extractor.network.training:
            self.teacher.settle()

    def _begin(self, batches: Iterable[Any], *, short: bool = False) -> None:
        self.learner.objective.begin_epoch(int(self.epoch), lambda limit: self._calibration(batches, limit, short))
        self.learner.train(self.training)
        self.begun = True

    @torch.no_grad()
    def _calibration(self, batches: Iterable[Any], limit: int, short: bool) -> Iterator[StepInputs]:
        """Some training images, both networks in evaluation mode."""
        device = next(self.learner.parameters()).device
        processes = dist.get_world_size() if _started() else 1
        self.learner.eval()
        left = -(-limit // processes)
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            images = images[:left].to(device)
            if short:
                warnings.warn(
                    f"distiller: a term wants to see {limit:,} training images now, and sees this batch of "
                    f"{len(images)}; call distiller.begin_epoch(epoch, batches) when an epoch begins",
                    stacklevel=2,
                )
            target = torch.full((len(images),), -1, device=device)
            with self.teacher.as_evaluated() if self.teacher is not None else nullcontext():
                yield StepInputs(self.learner.extractor(images), target, self._answers(images)).widened()
            left -= len(images)
            if left <= 0:
                return

    def _checked(self, images: Tensor, labels: Tensor | None, indices: Tensor | None, view: Tensor | None) -> Tensor:
        """The target, where all that was given fits."""
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
            raise UserError(
                f"images: {_said(images)}; expected floats (B, 3, H, W), prepared as the student takes them"
            )
        device, count = next(self.learner.parameters()).device, len(images)
        if not self.training and self.remembering:
            raise UserError(
                f"distiller: in evaluation {self.remembering[0]} has no value, for it remembers training images; "
                "measure distiller.student"
            )
        wants_view = self.needs.view or self.needs.partner
        for name, value, wanted in (("indices", indices, self.needs.indices), ("view", view, wants_view)):
            if wanted and value is None:
                what = (
                    "each image's position in the training set"
                    if name == "indices"
                    else (
                        "other images of the same classes"
                        if self.needs.partner
                        else "another augmentation of the images"
                    )
                )
                raise UserError(f"{name}: missing; a term needs {what}: distiller(images, labels, {name}=...)")
            if not wanted and value is not None:
                raise UserError(f"{name}: no term of the objective looks at it; leave it out")
        if view is not None and (view.shape != images.shape or view.dtype != images.dtype):
            raise UserError(f"view: {_said(view)}; expected what the images are, {_said(images)}")
        if indices is not None and (indices.shape != (count,) or indices.dtype != torch.long):
            raise UserError(f"indices: {_said(indices)}; expected torch.int64 ({count},)")
        for name, value in (("images", images), ("labels", labels), ("indices", indices), ("view", view)):
            if value is not None and isinstance(value, Tensor) and value.device != device:
                raise UserError(f"{name}: on {value.device}, but the student is on {device}; move the batch there")
        if indices is not None and self.remembering:
            _check_range("indices", indices, self.images, "of `train_labels`")
        return self._target(labels, count, device)

    def _target(self, labels: Tensor | None, count: int, device: torch.device) -> Tensor:
        if labels is None:
            if self.by_labels:
                raise UserError(f"labels: missing; {self.by_labels[0]} learns from labels: distiller(images, labels)")
            return torch.full((count,), -1, device=device)
        expected = f"expected class indices ({count},) or soft labels ({count}, {self.classes})"
        if not isinstance(labels, Tensor) or labels.dtype == torch.bool or labels.is_complex():
            raise UserError(f"labels: {_said(labels)}; {expected}")
        if labels.shape == (count, self.classes) and labels.is_floating_point():
            single = [*self.remembering, *(["a second image's term"] if self.needs.partner else [])]
            if single:
                raise UserError(f"labels: {single[0]} looks at single images and takes class indices, no soft labels")
            return labels
        if labels.shape != (count,) or labels.is_floating_point():
            raise UserError(f"labels: {_said(labels)}; {expected}")
        _check_range("labels", labels, self.classes, "classes")
        return labels.long()


class _PresentProcesses(Collective):
    """The processes that there are when they are asked: many trainers start them after the networks are built."""

    def all_gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate every rank's rows."""
        return _processes().all_gather(tensor)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add up over the ranks."""
        return _processes().all_reduce(tensor)

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor."""
        return _processes().broadcast(tensor)


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def _processes() -> Collective:
    return ProcessGroup() if _started() and dist.get_world_size() > 1 else Collective()


# Those with terms that act after an optimizer's steps. One hook for all, for it can be neither kept from torch's other
# optimizers nor removed while one of them steps.
_stepping: "weakref.WeakSet[Distiller]" = weakref.WeakSet()


def _after_step(optimizer: Optimizer, *arguments: Any) -> None:  # noqa: ANN401
    """Let terms act after a step of an optimizer of their distiller's parameters, whoever calls it."""
    for distiller in [each for each in _stepping if each.step_is_open]:
        own = set(distiller.parameters())
        if any(weight in own for group in optimizer.param_groups for weight in group["params"]):
            distiller.step_is_open = False
            distiller.learner.objective.end_step()


register_optimizer_step_post_hook(_after_step)


def _remembers(options: Any) -> bool:  # noqa: ANN401
    return bool(options.needs.indices and not options.draws_by_index)


def _check_objective(config: Objective, teacher: nn.Module | None, epochs: int | None, with_labels: bool) -> None:
    """See that the objective fits what is given, and can be had without Distillery's own loader."""
    config.check_terms()
    learns = [name for name, options in config.terms().items() if options.needs.teacher]
    if learns and teacher is None:
        raise UserError(f"teacher: missing; the objective's term {learns[0]!r} learns from a teacher")
    if teacher is not None and not learns:
        known = terms_with_teacher()
        raise UserError(f"teacher: no term of the objective uses it; add {', '.join(known[:-1])} or {known[-1]}")
    for name, options in config.terms().items():
        if options.teacher is not None:
            raise UserError(f"objective.{name}.teacher: there is no choice of teachers here; remove this key")
        if options.sampling() is not None:
            key = options.sampling().arguments  # type: ignore[union-attr]
            (word, value), *_ = key.items()
            raise UserError(
                f"objective.{name}.{word}: {value} needs Distillery's order of the images; write `{word}: 0` here, and "
                "let your own sampler put them together"
            )
        if options.counts_epochs and epochs is None:
            raise UserError(f"epochs: missing; {name} changes until the last epoch: Distiller(..., epochs=200)")
        if (_remembers(options) or options.needs.all_labels) and not with_labels:
            raise UserError(
                f"train_labels: missing; {name} knows every training image by its index: give the class of each"
            )


def _check_networks(student: nn.Module, teacher: nn.Module | None) -> None:
    for name, network in (("student", student), ("teacher", teacher)):
        if network is not None and not isinstance(network, nn.Module):
            raise UserError(f"{name}: expected a torch.nn.Module, found {type(network).__name__}")
    if teacher is None:
        return
    own = {id(weight) for weight in student.parameters()}
    if any(id(weight) in own for weight in teacher.parameters()):
        raise UserError("teacher: it shares weights with the student, and would be frozen with them; give a copy")


@torch.no_grad()
def _classes(network: nn.Module, role: str, size: int) -> int:
    """How many classes a network tells apart; one blank image goes through it, and changes nothing."""
    weight = next(network.parameters(), None)
    if weight is None:
        raise UserError(f"{role}: {type(network).__name__} has no parameters")
    modes = {module: module.training for module in network.modules()}
    try:
        logits_BC = network.eval()(torch.zeros(1, 3, size, size, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{role}: cannot take images of {size} x {size} pixels (size): {reason}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(logits_BC, Tensor) or logits_BC.ndim != 2:
        raise UserError(f"{role}: gives {_said(logits_BC)} for one image; expected logits (1, C)")
    return logits_BC.shape[1]


def _class_list(labels: Any, classes: int) -> npt.NDArray[np.int64]:  # noqa: ANN401
    found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not len(found):
        raise UserError(f"train_labels: {found.dtype} {found.shape}; expected the class of each training image, (N,)")
    if found.max() >= classes:
        raise UserError(f"train_labels: the largest is {found.max()}, but the student has {classes} classes, from 0")
    return found.astype(np.int64)


def _check_range(name: str, values: Tensor, count: int, what: str) -> None:
    # On a GPU the look would wait for the device at every step.
    if values.device.type == "cpu" and len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
        raise UserError(
            f"{name}: from {int(values.min())} to {int(values.max())}, but there are {count} {what}, from 0"
        )


def _said(value: Any) -> str:  # noqa: ANN401
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
