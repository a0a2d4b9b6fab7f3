"""What holds of every term: precision, extremes, its gradient, and that processes are one."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.distill.made_up import EVERY_TERM, computed, networks, objective_of, prepared
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distillery.distill.collective import Collective, ProcessGroup
from distillery.distill.step import StepInputs, View
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS


def learned(objective, inputs):
    """All that a step may have a gradient for: the student's outputs, and what the terms train."""
    found = {}
    for outputs in (inputs.student, inputs.view.student):
        outputs.each(lambda tensor: found.setdefault(id(tensor), tensor))
    leaves = [*found.values(), *objective.parameters()]
    return [leaf.requires_grad_() for leaf in leaves if leaf.is_leaf]


def test_any_sum_of_terms_is_legal():
    student, _, values = computed({name: options | {"weight": 0.5} for name, options in EVERY_TERM.items()})
    total = sum(0.5 * value for name, value in values.items() if name != "loss")
    assert {name: value for name, value in values.items() if not value.isfinite()} == {}
    torch.testing.assert_close(values["loss"], total)
    values["loss"].backward()
    for tensor in (student.logits_BC, *student.stages):
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("term", EVERY_TERM)
def test_terms_compute_in_float32_whatever_autocast_does(term):
    _, _, plain = computed({term: {}})
    with torch.autocast("cpu", torch.bfloat16):
        _student, _, values = computed({term: {}})
    assert values[term].dtype == torch.float32
    # Overhaul's connectors are computed as the networks are.
    torch.testing.assert_close(values[term], plain[term], rtol=3e-2 if term == "overhaul" else 1e-6, atol=1e-7)
    _, _, half = computed({term: {}}, dtype=torch.bfloat16)
    torch.testing.assert_close(half[term], plain[term], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("term", EVERY_TERM)
def test_answers_of_ten_thousand_stay_finite_under_autocast(term, dtype):
    objective, inputs = prepared({term: EVERY_TERM[term]}, dtype, scale=1e4)
    leaves = learned(objective, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        value = objective(inputs)["loss"]
    gradients = torch.autograd.grad(value, leaves, allow_unused=True)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)


@pytest.mark.parametrize("term", EVERY_TERM)
def test_one_image_of_one_pixel_is_learned_from_or_refused_in_one_line(term):
    objective, inputs = prepared({term: EVERY_TERM[term]})

    def one(outputs):
        return outputs.each(lambda tensor: tensor[:1, :, :1, :1] if tensor.ndim == 4 else tensor[:1])

    view = View(one(inputs.view.student), one(inputs.view.teacher))
    inputs = StepInputs(
        one(inputs.student), inputs.target[:1], one(inputs.teacher), indices_B=inputs.indices_B[:1], view=view
    )
    try:
        assert objective(inputs)["loss"].isfinite()
    except UserError as error:
        assert re.fullmatch(r"(objective\.\w+|batch): .*; raise `batch`, or set `drop_last: true`", str(error))  # noqa: PT017


class Constants(TorchFunctionMode):
    """Gives what is detached, or computed without gradient, as it was at first, so that no difference sees it move."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def __enter__(self):
        self.turn = iter(list(self.kept))
        return super().__enter__()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        constant = function is Tensor.detach or not torch.is_grad_enabled()
        if not constant or not isinstance(result, Tensor):
            return result
        first = next(self.turn, None)
        if first is None:
            self.kept.append(first := result.clone())
        return first


@pytest.mark.parametrize("term", EVERY_TERM)
def test_the_gradient_of_every_term_is_its_derivative(term):
    objective, inputs = prepared({term: EVERY_TERM[term]}, torch.float64)
    objective.double()
    leaves, constants = learned(objective, inputs), Constants()
    objective(inputs)  # what a run's first batch sets, it sets here

    def value():
        with constants:
            return objective(inputs)["loss"]

    first = value()
    gradients = torch.autograd.grad(first, leaves, allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    generator = torch.Generator().manual_seed(0)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        direction, step = torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator), 1e-6
        values = []
        for side in (1, -1):
            leaf.data += side * step * direction
            values.append(value())
            leaf.data -= side * step * direction
        slope = 0.0 if gradient is None else (gradient * direction).sum().item()
        found = (values[0] - values[1]).item() / (2 * step)
        assert found == pytest.approx(slope, rel=1e-5, abs=1e-8 * abs(first.item()) + 1e-12), leaf.shape


class Watched(Collective):
    """Remembers whether it was asked for anything."""

    asked = False

    def __getattribute__(self, name):
        if not name.startswith("_") and name != "asked":
            self.asked = True
        return super().__getattribute__(name)


def two_steps(term, collective, part):
    """What a term remembers after two epochs of one step, and the sum of its values over a part of the images.

    The sum is None where a batch norm, which sees a process's own images, has a say in it.
    """
    student, teacher, context = networks(batch=12)
    student, teacher = student.only(part), teacher.only(part)
    torch.manual_seed(0)
    objective = objective_of(
        {term: EVERY_TERM[term]}, replace(context, collective=collective, labels=np.arange(14) % 5, epochs=2)
    )
    total, indices = 0.0, torch.arange(12)[part] + 1
    for epoch in range(2):
        view = View(student, teacher)
        inputs = StepInputs(student, indices % 5, teacher, epoch=epoch, indices_B=indices, view=view)
        objective.begin_epoch(epoch, lambda limit: [inputs])  # noqa: B023
        total += objective(inputs)["loss"].item() * len(indices)
        objective.end_step()
        student = student.each(lambda tensor: -tensor.roll(1, -1))
    norms = [name for name, module in objective.named_modules() if isinstance(module, nn.BatchNorm2d)]
    remembered = {name: value for name, value in objective.named_buffers() if name.rpartition(".")[0] not in norms}
    return remembered, None if norms else total


PARTS = [slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 12)]


def _as_one(rank, expected):
    for term, (remembered, total) in expected.items():
        found, own = two_steps(term, ProcessGroup(), PARTS[rank])
        for name, value in remembered.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=f"{term}: {name}")
        own = ProcessGroup().all_reduce(torch.tensor(own or 0.0)).item()
        assert total is None or own == pytest.approx(total, rel=1e-5), term


@pytest.mark.slow
def test_four_processes_are_one_for_every_term_that_talks_to_the_others(in_processes):
    expected = {}
    for term in TERMS:
        if TERMS[term].head is None:
            watched = Watched()
            found = two_steps(term, watched, slice(0, 12))
            expected |= {term: found} if watched.asked else {}
    assert set(expected) >= {"bake", "crd", "mgd", "pskd"}
    in_processes(_as_one, 4, expected)
