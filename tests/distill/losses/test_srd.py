"""SRD: embeddings that meet in a logarithm."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision
from torch import nn

from distillery.distill.losses.srd import SRD, srd_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_originals_formula():
    """As imagenet/torchdistill/losses/single.py computes it."""
    term, student, teacher = SRD(), draw(6, 3), draw(6, 5, seed=1)
    term.setup(TermContext(student_features=3, teacher_features=5))
    term.double()
    norms = [nn.BatchNorm1d(5, eps=1e-4, affine=False).double() for _ in "st"]
    projected = student @ term.projector.weight.T + draw(5, seed=2)  # a bias makes no difference
    expected = torch.log((norms[0](projected) - norms[1](teacher)).abs().pow(4.0).sum())
    none = torch.zeros(6, 1)
    inputs = StepInputs(Outputs(none, (), student), none, Outputs(none, (), teacher))
    torch.testing.assert_close(term(inputs), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("exponent", [2.0, 4.0])
def test_the_gradient_is_the_derivative(exponent):
    teacher = draw(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda x: srd_loss(x, teacher, exponent), draw(5, 4).requires_grad_())


@pytest.mark.parametrize("batch", [1, 3])
def test_who_has_nothing_to_learn_has_no_gradient(batch):
    teacher = draw(batch, 4)
    student = (2 * teacher + 1 if batch == 1 else teacher.clone()).requires_grad_()
    loss = srd_loss(student, teacher)
    loss.backward()
    assert loss.isfinite()
    assert not student.grad.any()


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale):
    student, teacher = (scale * draw(5, 4, seed=seed) for seed in range(2))
    finite_in_half_precision(lambda x: srd_loss(x, teacher.bfloat16()), student)
