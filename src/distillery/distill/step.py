"""What a training step hands to the terms of an objective.

Named tuples all the way down, so that Fabric's precision and DDP pass them on as they are.

B batch, C classes, D features, H W pixels, N tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distillery.distill.precision import at_least_float32


class Maps(NamedTuple):
    """A network's maps (B, channels, H, W) as it gives them; the kinds are those of ``Outputs``."""

    stages: tuple[Tensor, ...] = ()
    activations: tuple[Tensor, ...] = ()
    raw: tuple[Tensor, ...] = ()


NO_MAPS = Maps()


class Outputs(NamedTuple):
    """What a network gave for one batch of images; all but the logits only where a term asks for it.

    ``stages``, ``activations`` and ``raw`` hold a map (B, channels, H, W) for the end of each paired stage: before its
    activation, after it, and as the stage hands it on (in pre-activation networks neither normed nor rectified). The
    maps of two networks have the same H and W; ``unpooled`` has them at their own. ``tokens`` holds transformers'
    sequences (B, N, channels), with class and register tokens in front. ``embedding_BD`` is what entered the last
    linear layer.

    ``unpaired`` holds every stage of the network itself, after its activation and at its own size, a transformer's as
    tokens. ``last`` is the map (B, C, H, W) that the embedding is made of, at its own size, a transformer's tokens on
    their grid. ``averaged`` is the map (B, D, H, W) whose mean is the embedding, at its own size; where there is none,
    the embedding as one pixel. ``head`` is what the head that a term deploys with the student made its logits of.

    Of several teachers, ``each_teacher`` has what each gave, and the logits are their mean.
    """

    logits_BC: Tensor
    stages: tuple[Tensor, ...] = ()
    embedding_BD: Tensor | None = None
    activations: tuple[Tensor, ...] = ()
    raw: tuple[Tensor, ...] = ()
    tokens: tuple[Tensor, ...] = ()
    unpooled: Maps = NO_MAPS
    unpaired: tuple[Tensor, ...] = ()
    averaged: Tensor | None = None
    head: Tensor | None = None
    last: Tensor | None = None
    each_teacher: "tuple[Outputs, ...]" = ()

    def each(self, change: Callable[[Tensor], Tensor]) -> "Outputs":
        """The same with every tensor changed."""
        if self[1:] == NO_FEATURES:
            return Outputs(change(self.logits_BC))

        def changed(value: Any) -> Any:  # noqa: ANN401
            if isinstance(value, Tensor):
                return change(value)
            if not value or value is NO_MAPS:
                return value
            if isinstance(value, Outputs):
                return value.each(change)
            values = map(changed, value)
            return Maps(*values) if isinstance(value, Maps) else tuple(values)

        return Outputs(*map(changed, self))

    def widened(self) -> "Outputs":
        """The same in float32 at least."""
        return self.each(at_least_float32)

    def only(self, rows: Tensor) -> "Outputs":
        """The same for some images of the batch."""
        return self.each(lambda tensor: tensor[rows])


# What follows the logits where no term asks for more; comparing with it is quicker than going through all.
NO_FEATURES = tuple(Outputs._field_defaults.values())


class View(NamedTuple):
    """What both networks gave for another augmentation of the batch's images."""

    student: Outputs
    teacher: Outputs | None = None

    def widened(self) -> "View":
        """The same in float32 at least."""
        return View(self.student.widened(), None if self.teacher is None else self.teacher.widened())

    def only(self, rows: Tensor) -> "View":
        """The same for some images of the batch."""
        return View(self.student.only(rows), None if self.teacher is None else self.teacher.only(rows))


class Labelled(NamedTuple):
    """The images that have labels, where not all have: their rows, (L,), and their share of the global batch."""

    rows: Tensor
    share: float


class StepInputs(NamedTuple):
    """All that a term may look at in one training step.

    Attributes:
        student: what the student gave; carries gradients.
        target: class indices, (B,), or soft targets, (B, C).
        teacher: what the teacher gave, without gradient; None where there is no teacher.
        batch_fraction: the step's global batch over the nominal one: below 1 for an epoch's last batch.
        epoch: where the run stands, epochs from 0 and fractions of them: epoch + step / steps.
        indices_B: every image's position in the training set.
        view: a second augmentation, where a term asks for it, or partners: other images of the images' classes.
        labelled: the images whose entry in ``target`` means something; None for all.
    """

    student: Outputs
    target: Tensor
    teacher: Outputs | None = None
    batch_fraction: float = 1.0
    epoch: float = 0.0
    indices_B: Tensor | None = None
    view: View | None = None
    labelled: Labelled | None = None

    def only(self, rows: Tensor) -> "StepInputs":
        """The same for some images of the batch."""
        return StepInputs(
            self.student.only(rows),
            self.target[rows],
            None if self.teacher is None else self.teacher.only(rows),
            self.batch_fraction,
            self.epoch,
            None if self.indices_B is None else self.indices_B[rows],
            None if self.view is None else self.view.only(rows),
        )

    def among(self, classes_K: Tensor) -> "StepInputs":
        """The same with the logits of some classes alone, ascending; other targets become -1, or 0s."""

        def kept(outputs: Outputs) -> Outputs:
            return outputs._replace(logits_BC=outputs.logits_BC[:, classes_K])

        if self.target.ndim == 2:
            target = self.target[:, classes_K]
            target = target / target.sum(dim=1, keepdim=True).clamp_min(1e-12)
        else:
            place_C = self.target.new_full((self.student.logits_BC.shape[1],), -1)
            place_C[classes_K] = torch.arange(len(classes_K), device=place_C.device)
            # What is hidden stays so.
            target = torch.where(self.target < 0, self.target, place_C[self.target.clamp_min(0)])
        teacher = None if self.teacher is None else kept(self.teacher)
        return self._replace(student=kept(self.student), target=target, teacher=teacher)

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Both networks' embeddings, (B, D) and (B, another D), where a term asks for them."""
        assert self.teacher is not None
        student_BD, teacher_BD = self.student.embedding_BD, self.teacher.embedding_BD
        assert student_BD is not None
        assert teacher_BD is not None
        return student_BD, teacher_BD

    def widened(self) -> "StepInputs":
        """The same in float32 at least."""
        return StepInputs(
            self.student.widened(),
            self.target,
            None if self.teacher is None else self.teacher.widened(),
            self.batch_fraction,
            self.epoch,
            self.indices_B,
            None if self.view is None else self.view.widened(),
            self.labelled,
        )
