"""VID: a Gaussian likelihood with a learned variance a channel."""

import pytest
import torch
from pydantic import ValidationError

from distillery.distill.losses.vid import VID, vid_loss
from distillery.distill.term import StagePair, TermContext
from distillery.experiment.schema.objective import Objective


def test_the_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    predicted, teacher = (torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor([-1.0, 0.5, 6.0], dtype=torch.float64)
    leaves = predicted.requires_grad_(), scale.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, s: vid_loss(x, teacher, s), leaves)


def test_it_is_the_likelihood_less_a_constant():
    generator = torch.Generator().manual_seed(0)
    predicted, teacher = (torch.randn(2, 3, 2, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.tensor([-1.0, 0.5, 6.0], dtype=torch.float64)
    deviation = (torch.log1p(scale.exp()) + 0.1).sqrt().reshape(1, 3, 1, 1)
    likelihood = torch.distributions.Normal(predicted, deviation).log_prob(teacher).mean()
    constant = torch.log(torch.tensor(2 * torch.pi)) / 2
    torch.testing.assert_close(vid_loss(predicted, teacher, scale, 0.1), -likelihood - constant, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [-1e4, 1e4])
def test_immense_scales_stay_finite(scale):
    scales = torch.full((3,), scale).requires_grad_()
    loss = vid_loss(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), scales)
    loss.backward()
    assert loss.isfinite()
    assert scales.grad.isfinite().all()


@pytest.mark.parametrize("variance", [5.0, 1e-3, 1e6])
def test_the_variance_starts_as_it_was_said_and_is_learned(variance):
    term = VID(initial_variance=variance)
    term.setup(TermContext((StagePair(4, 6, None), StagePair(5, 8, None))))
    names = [name for name, _ in term.named_parameters() if "log_scales" in name]
    assert names == ["log_scales.0", "log_scales.1"]
    found = torch.nn.functional.softplus(term.log_scales["1"].double()) + 1e-5
    torch.testing.assert_close(found, torch.full((8,), variance, dtype=torch.float64), rtol=1e-5, atol=0)


def test_a_variance_below_the_least_is_refused():
    with pytest.raises(ValidationError, match="initial_variance 1e-06 must lie above least_variance 1e-05"):
        Objective.model_validate({"vid": {"initial_variance": 1e-6}})
