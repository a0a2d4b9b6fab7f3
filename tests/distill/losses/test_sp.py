"""SP: which images of a batch are alike."""

import pytest
import torch

from distillery.distill.losses.sp import sp_loss


def maps(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_the_gradient_is_the_derivative(compat):
    student, teacher = maps((3, 2, 4, 3), (3, 5, 2, 2))
    assert torch.autograd.gradcheck(lambda x: sp_loss(x, teacher, compat), student.requires_grad_())


def test_channels_pixels_and_scale_do_not_count():
    (student,) = maps((5, 2, 4, 3))
    assert sp_loss(3 * student, student.flip(1, 2).reshape(5, 3, 2, 4)) < 1e-30


def test_an_image_of_zeros_has_no_gradient_and_an_immense_one_in_the_original():
    student, teacher = maps((4, 2, 3, 3), (4, 5, 3, 3))
    student[1] = 0
    gradients = {}
    for compat in ("fixed", "reference"):
        leaf = student.clone().requires_grad_()
        sp_loss(leaf, teacher, compat).backward()
        gradients[compat] = leaf.grad
    assert gradients["reference"][1].abs().max() > 1e9
    assert (gradients["fixed"][1] == 0).all()
    others = torch.tensor([0, 2, 3])
    torch.testing.assert_close(gradients["fixed"][others], gradients["reference"][others])


def test_a_single_image_has_nothing_to_learn():
    student, teacher = maps((1, 2, 3, 3), (1, 5, 3, 3))
    student.requires_grad_()
    loss = sp_loss(student, teacher)
    loss.backward()
    assert loss == 0
    assert student.grad.isfinite().all()
