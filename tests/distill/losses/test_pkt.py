"""PKT: what its similarities see, and gradients at the edges."""

import math

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision

from distillery.distill.losses.pkt import pkt_loss


def embeddings(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_value_is_that_of_the_formula():
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    # Cosines 0 and 1: shares of a row are 2/3 and 1/3 for the student, 1/2 and 1/2 for the teacher.
    expected = (math.log(0.5 / (2 / 3)) + math.log(0.5 / (1 / 3))) / 4
    assert pkt_loss(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_the_gradient_is_the_derivative():
    student, teacher = embeddings(5, 3).requires_grad_(), embeddings(5, 4, seed=1)
    assert torch.autograd.gradcheck(lambda e: pkt_loss(e, teacher), student)


def test_lengths_and_rotations_do_not_count():
    teacher = embeddings(6, 4)
    rotation, _ = torch.linalg.qr(embeddings(4, 4, seed=1))
    scaled = embeddings(6, 1, seed=2).abs() * teacher @ rotation
    assert pkt_loss(scaled, teacher).abs() < 1e-7
    assert pkt_loss(embeddings(6, 4, seed=3), teacher) > 1e-4


def test_the_teacher_gets_no_gradient():
    student, teacher = embeddings(4, 3).requires_grad_(), embeddings(4, 3, seed=1).requires_grad_()
    pkt_loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("student", [torch.zeros(3, 4), torch.ones(1, 4), 1e4 * torch.eye(4), -1e4 * torch.ones(4, 4)])
def test_edges_stay_finite_in_half_precision(student):
    finite_in_half_precision(lambda x: pkt_loss(x, embeddings(len(student), 6).bfloat16()), student)
