"""ICKD: how the channels of the last map go together."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision
from torch.nn import functional as F

from distillery.distill.losses.ickd import ICKD, ickd_loss
from distillery.distill.step import Maps, Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.errors import UserError


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shown(student, teacher):
    none = torch.zeros(len(student), 1)
    outputs = [Outputs(none, unpooled=Maps(raw=(map_[:, :1], map_))) for map_ in (student, teacher)]
    return StepInputs(outputs[0], none, outputs[1])


def term_of():
    term = ICKD()
    term.setup(TermContext((StagePair(2, 3, None), StagePair(4, 6, None))))
    return term.double()


def test_it_is_the_originals_formula():
    """As Cifar100/distiller_zoo/ICKD.py computes it."""
    term, student, teacher = term_of(), draw(3, 4, 4, 4), draw(3, 6, 4, 4, seed=1)
    convolution, norm = term.embed
    convolved = torch.einsum("bshw,ts->bthw", student, convolution.weight[:, :, 0, 0])
    widened = F.batch_norm(convolved, None, None, training=True, eps=norm.eps)
    grams = [torch.einsum("bip,bjp->bij", rows, rows) for rows in (widened.flatten(2), teacher.flatten(2))]
    rows = [gram / gram.norm(dim=2, keepdim=True) for gram in grams]
    expected = ((rows[0] - rows[1]) ** 2).sum() / (6 * 3)
    torch.testing.assert_close(term(shown(student, teacher)), expected, rtol=1e-9, atol=0)


def test_the_gradient_is_the_derivative():
    teacher = draw(3, 4, 2, 2, seed=1)
    assert torch.autograd.gradcheck(lambda x: ickd_loss(x, teacher), draw(3, 4, 3, 2).requires_grad_())


def test_sizes_and_scales_do_not_count():
    student = draw(3, 4, 2, 2)
    larger = student.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3)
    assert ickd_loss(0.1 * larger, student) < 1e-28


def test_dead_channels_have_no_gradient():
    student, teacher = draw(3, 4, 2, 2), draw(3, 4, 2, 2, seed=1)
    student[:, 1] = 0
    teacher[:, 2] = 0
    leaf = student.requires_grad_()
    ickd_loss(leaf, teacher).backward()
    assert leaf.grad.isfinite().all()
    assert leaf.grad.abs().max() < 100


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale):
    student, teacher = (scale * draw(3, 4, 2, 2, seed=seed) for seed in range(2))
    finite_in_half_precision(lambda x: ickd_loss(x, teacher.bfloat16()), student)


def test_one_number_a_channel_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^objective.ickd: a batch of one image gives one number a channel"):
        term_of()(shown(draw(1, 4, 1, 1), draw(1, 6, 1, 1)))
