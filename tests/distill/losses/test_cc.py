"""CC: products of neighbouring differences, and which embeddings are trained."""

import pytest
import torch

from distillery.distill.losses.cc import CC, cc_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext


def embeddings(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_value_is_that_of_the_formula():
    student, teacher = torch.tensor([[1.0, 2.0], [0.0, -1.0], [4.0, 0.0]]), torch.zeros(3, 2)
    assert cc_loss(student, teacher) == (2 * 1 + 0) / 2


def test_the_gradient_is_the_derivative_for_both():
    student, teacher = embeddings(5, 3).requires_grad_(), embeddings(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(cc_loss, (student, teacher))


def test_one_image_alone_costs_nothing():
    student = torch.ones(1, 3, requires_grad=True)
    loss = cc_loss(student, torch.zeros(1, 3))
    loss.backward()
    assert loss == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_both_layers_are_trained_and_stay_finite_in_half_precision(scale):
    term = CC(8)
    term.setup(TermContext(student_features=3, teacher_features=5))
    none = torch.zeros(4, 1)
    student, teacher = (Outputs(none, (), scale * embeddings(4, width).bfloat16().float()) for width in (3, 5))
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(StepInputs(student, none, teacher))
    loss.backward()
    assert loss.isfinite()
    for layer in (term.embed_s, term.embed_t):
        assert layer.weight.grad.isfinite().all()
        assert layer.weight.grad.abs().sum() > 0
