"""AT: where maps are strong, whatever their scale and their channels."""

import pytest
import torch

from distillery.distill.losses.at import at_loss


def maps(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("size", [(4, 3), (5, 2)])
def test_the_gradient_is_the_derivative(power, size):
    student, teacher = maps((3, 2, 4, 3), (3, 5, *size))
    assert torch.autograd.gradcheck(lambda x: at_loss(x, teacher, power), student.requires_grad_())


def test_attention_does_not_see_scale_signs_or_repeated_channels():
    (student,) = maps((3, 2, 4, 4))
    assert at_loss(-3 * student.repeat(1, 3, 1, 1), student) < 1e-30


@pytest.mark.parametrize("power", [1, 2])
def test_a_map_of_zeros_has_no_gradient(power):
    student, teacher = maps((3, 2, 4, 4), (3, 5, 4, 4))
    student[0] = 0
    student.requires_grad_()
    loss = at_loss(student, teacher, power)
    loss.backward()
    assert loss.isfinite()
    assert (student.grad[0] == 0).all()
    assert (student.grad[1] != 0).any()
