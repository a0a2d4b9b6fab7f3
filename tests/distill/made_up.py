"""Made-up outputs of two networks, and objectives that look at them."""

import numpy as np
import torch
from torch import nn

from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.step import Maps, Outputs, StepInputs, View
from distillery.distill.term import OwnStage, StagePair, TermContext
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.models.taps import Features


def objective_of(terms, context=None):
    return build_objective(Objective.model_validate(terms), context)


def networks(batch=4, dtype=torch.float32, scale=1.0):
    """Made-up outputs of a student and a teacher with two stages."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return (scale * torch.randn(*shape, generator=generator)).to(dtype)

    def outputs(logits_BC, maps, embedding_BD, **once):
        return Outputs(logits_BC, maps, embedding_BD, maps, maps, unpooled=Maps(maps, maps, maps), **once)

    maps = draw(batch, 4, 6, 6).requires_grad_(), draw(batch, 6, 3, 3).requires_grad_()
    student = outputs(
        draw(batch, 5).requires_grad_(),
        maps,
        draw(batch, 7),
        unpaired=(draw(batch, 4, 8, 8), draw(batch, 6, 4, 4)),
        averaged=draw(batch, 7, 3, 5),
        last=draw(batch, 7, 3, 5),
    )
    teacher_maps = draw(batch, 8, 6, 6), draw(batch, 13, 3, 3)
    teacher = outputs(
        draw(batch, 5), teacher_maps, draw(batch, 9), averaged=draw(batch, 9, 4, 2), last=draw(batch, 9, 4, 2)
    )
    margin = bn_margin(draw(8).float(), draw(8).float())
    pairs = (StagePair(4, 8, margin, *[(6, 6)] * 3), StagePair(6, 13, None, *[(3, 3)] * 3))
    torch.manual_seed(2)
    context = TermContext(
        pairs,
        student_features=7,
        teacher_features=9,
        student_classifier=nn.Linear(7, 5),
        teacher_classifier=nn.Linear(9, 5).requires_grad_(False),
        student_stages=(OwnStage(4, (8, 8)), OwnStage(6, (4, 4))),
        student_last=OwnStage(7, (3, 5)),
        teacher_last=OwnStage(9, (4, 2)),
        teacher_map_size=(4, 2),
        labels=np.array([0, 1, 2, 3, 3, 0]),
        classes=5,
        seed=1,
    )
    return student, teacher, context


EVERY_TERM = {name: {} for name in TERMS} | {
    "crd": {"negatives": 2},
    "cat": {"compat": "fixed"},
    "similarity": {"gather": True},  # without it, each process has a queue of its own
}


def prepared(terms, dtype=torch.float32, batch_fraction=1.0, scale=1.0):
    """An objective, set up, and what it is shown in its first step."""
    student, teacher, context = networks(dtype=dtype, scale=scale)
    torch.manual_seed(0)
    objective = objective_of(terms, context)
    for _, term in objective.each():
        if (head := term.head(context)) is not None:
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                student = student._replace(head=head(Features(averaged=student.averaged.float()))[1].to(dtype))
    target = torch.tensor([0, 1, 2, 3])
    objective.begin_epoch(0, lambda limit: [StepInputs(student, target, teacher)])
    indices = torch.tensor([0, 4, 1, 2])
    view = View(Outputs(student.logits_BC.detach().flip(0)), Outputs(teacher.logits_BC.flip(0)))
    return objective, StepInputs(student, target, teacher, batch_fraction, indices_B=indices, view=view)


def computed(terms, dtype=torch.float32, batch_fraction=1.0):
    objective, inputs = prepared(terms, dtype, batch_fraction)
    return inputs.student, objective, objective(inputs)
