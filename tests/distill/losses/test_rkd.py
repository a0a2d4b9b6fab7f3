"""RKD: what its relations see, and gradients where embeddings coincide."""

import pytest
import torch

from distillery.distill.losses.rkd import rkd_loss


def test_the_gradient_is_the_derivative():
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda e: rkd_loss(e, teacher), student.requires_grad_())


def test_relations_do_not_see_shifts_scales_and_rotations():
    teacher = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert rkd_loss(3 * teacher @ rotation + 100, teacher) < 1e-12


@pytest.mark.parametrize("student", [torch.zeros(1, 3), torch.ones(4, 3), 1e4 + torch.eye(3)])
def test_single_and_equal_and_distant_embeddings_have_finite_gradients(student):
    student = student.clone().requires_grad_()
    loss = rkd_loss(student, torch.randn(len(student), 5, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_two_images_with_one_student_embedding_get_no_explosion():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, generator=generator)
    student[1] = student[0]
    student.requires_grad_()
    rkd_loss(student, torch.randn(5, 4, generator=generator)).backward()
    assert student.grad.abs().max() < 100
