"""Tf-KD's virtual teacher: its formula, and gradients at the edges."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision

from distillery.distill.losses.tfkd import tfkd_loss


def logits(scale=1.0, classes=4):
    return scale * torch.randn(5, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


LABELS = torch.tensor([0, 1, 1, 3, 2])


def test_the_value_is_that_of_the_formula():
    believed = torch.full((5, 4), 0.1 / 3, dtype=torch.float64)
    believed[torch.arange(5), LABELS] = 0.9
    q = (believed / 20).softmax(dim=1)
    expected = (q * (q.log() - logits().log_softmax(dim=1))).mean()
    torch.testing.assert_close(tfkd_loss(logits(), LABELS, 0.9, 20.0), expected)


def test_of_soft_labels_the_largest_counts():
    soft = torch.nn.functional.one_hot(LABELS, 4) * 0.6 + 0.1
    torch.testing.assert_close(tfkd_loss(logits(), soft), tfkd_loss(logits(), LABELS))


def test_the_gradient_is_the_derivative():
    assert torch.autograd.gradcheck(lambda z: tfkd_loss(z, LABELS), logits().requires_grad_())


@pytest.mark.parametrize("classes", [4, 1000])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale, classes):
    finite_in_half_precision(lambda x: tfkd_loss(x, LABELS), logits(scale, classes))
