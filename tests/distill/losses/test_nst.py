"""NST: the same discrepancy from matrices of channels and of pixels."""

import pytest
import torch
from torch.nn import functional as F

from distillery.distill.losses.nst import nst_loss


def maps(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]


def spelled_out(student, teacher):
    """The original's way: all products of all pairs of channels."""
    s, t = (F.normalize(feature.flatten(2), dim=2) for feature in (student, teacher))

    def kernel(a, b):
        return (a[:, :, None] * b[:, None]).sum(dim=3).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


# Many channels and few pixels, and the reverse: the two ways to compute it.
@pytest.mark.parametrize("shapes", [((3, 9, 2, 3), (3, 14, 2, 3)), ((3, 2, 7, 5), (3, 4, 7, 5))])
def test_it_is_the_mean_over_pairs_of_channels(shapes):
    student, teacher = maps(*shapes)
    student.requires_grad_()
    found, expected = nst_loss(student, teacher), spelled_out(student, teacher)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(value, student)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("shapes", [((2, 6, 2, 2), (2, 7, 3, 2)), ((2, 2, 4, 3), (2, 2, 5, 2))])
def test_the_gradient_is_the_derivative(shapes):
    student, teacher = maps(*shapes)
    assert torch.autograd.gradcheck(lambda x: nst_loss(x, teacher), student.requires_grad_())


@pytest.mark.parametrize("shape", [(2, 9, 2, 2), (2, 3, 6, 6)])
def test_the_order_and_scale_of_channels_do_not_count_and_dead_ones_have_no_gradient(shape):
    (feature,) = maps(shape)
    assert nst_loss(feature.flip(1) * 3, feature).abs() < 1e-15
    student = feature.clone()
    student[:, 1] = 0
    student.requires_grad_()
    nst_loss(student, feature).backward()
    assert student.grad.isfinite().all()
    assert (student.grad[:, 1] == 0).all()
    assert (student.grad[:, 0] != 0).any()
