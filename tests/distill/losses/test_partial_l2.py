import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from distillery.distill.losses.partial_l2 import bn_margin, margin_relu, partial_l2, stage_weights


def test_margins_reproduce_the_original(vectors):
    stored = vectors("mgd_margin", torch.float32)
    margin = bn_margin(stored["weight"], stored["bias"])
    torch.testing.assert_close(margin, stored["margin"].reshape(1, -1, 1, 1), rtol=2e-7, atol=0)


def test_distance_reproduces_the_original(vectors, precision):
    stored = vectors("mgd_partial_l2", precision.dtype)
    source = stored.leaf("source")
    with precision.context():
        loss = partial_l2(source, stored["target"], stored["margin"])
    loss.backward()
    precision.close(loss, stored.exact("loss"))
    precision.close(source.grad, stored.exact("grad"))


@pytest.mark.slow
@given(weight=st.floats(0.01, 5), sign=st.sampled_from([-1, 1]), ratio=st.floats(-6, 3))
def test_margin_is_the_mean_of_a_normal_variable_below_zero(weight, sign, ratio):
    mean, deviation = np.float32(weight * ratio), np.float32(weight)
    below, _ = quad(lambda x: x * norm.pdf(x, mean, deviation), mean - 12 * deviation, min(0, mean + 12 * deviation))
    margin = bn_margin(torch.tensor([sign * deviation]), torch.tensor([mean]))
    np.testing.assert_allclose(margin.item(), below / norm.cdf(-mean / deviation), rtol=1e-5)


def test_a_channel_that_is_hardly_ever_negative_has_margin_minus_three_sigma():
    weight, bias = torch.tensor([2.0, -2.0, 1.0]), torch.tensor([6.19, 6.19, 100.0])  # 3.0902 sigma = 6.1805
    assert bn_margin(weight, bias).flatten().tolist() == [-6.0, -6.0, -3.0]


def test_a_channel_of_weight_zero_has_the_limit_for_margin():
    weight, bias = torch.zeros(3), torch.tensor([-1.5, 0.0, 1.5])
    margin = bn_margin(weight, bias)
    assert margin.flatten().tolist() == [-1.5, 0.0, 0.0]
    assert margin.dtype == torch.float32
    torch.testing.assert_close(bn_margin(weight + 1e-20, bias), margin)


@given(seed=st.integers(0, 2**31))
def test_distance_is_the_sum_over_the_pixels_that_count(seed):
    generator = torch.Generator().manual_seed(seed)
    source, target = (torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    margin = -torch.rand(1, 3, 1, 1, dtype=torch.float64, generator=generator)
    expected = 0.0
    for (image, channel, row, column), x in np.ndenumerate(source.numpy()):
        tau = max(target[image, channel, row, column].item(), margin[0, channel].item())
        if x > tau or tau > 0:
            expected += (x - tau) ** 2
    assert math.isclose(partial_l2(source, target, margin).item(), expected, rel_tol=1e-12)


def test_what_the_activation_cuts_costs_nothing():
    target, margin = torch.tensor([-2.0, -0.1, 0.5]).reshape(1, 3, 1, 1), torch.full((1, 3, 1, 1), -1.0)
    assert margin_relu(target, margin).flatten().tolist() == [-1.0, torch.tensor(-0.1).item(), 0.5]
    assert partial_l2(torch.full((1, 3, 1, 1), -5.0), target, margin) == 5.5**2
    assert partial_l2(target, target, margin) == 0


def test_gradient_is_the_derivative_and_only_the_source_gets_one():
    generator = torch.Generator().manual_seed(2)
    source, target = (
        torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)
    )
    margin = torch.tensor([-0.3, -0.8, -0.1], dtype=torch.float64).reshape(1, 3, 1, 1)
    assert torch.autograd.gradcheck(lambda x: partial_l2(x, target.detach(), margin), source)
    partial_l2(source, target, margin).backward()
    assert target.grad is None


def test_half_precision_does_not_overflow():
    source = torch.full((2, 3, 4, 4), 1e4, dtype=torch.float16, requires_grad=True)
    loss = partial_l2(source, -source, torch.zeros(1, 3, 1, 1, dtype=torch.float16))
    loss.backward()
    assert loss.isfinite()
    assert source.grad.isfinite().all()


def test_stage_weights_halve_away_from_the_end():
    assert stage_weights(4) == [0.125, 0.25, 0.5, 1.0]
    assert stage_weights(1) == [1.0]
