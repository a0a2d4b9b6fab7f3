"""CS-KD: whom it learns from, and that partners pass by themselves, after the batch."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision

from distillery.distill.losses.cskd import cskd_loss
from distillery.distill.losses.kd import kd_loss
from distillery.distill.student import FeatureExtractor, Learner


def test_it_is_distillation_with_the_partner_as_the_teacher():
    logits, partners = (torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    logits.requires_grad_()
    partners.requires_grad_()
    loss = cskd_loss(logits, partners, 4.0)
    assert torch.equal(loss, kd_loss(logits, partners, 4.0))
    loss.backward()
    assert partners.grad is None


def test_the_gradient_is_the_derivative():
    logits, partners = (
        torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)
    )
    assert torch.autograd.gradcheck(lambda z: cskd_loss(z, partners, 4.0), logits.requires_grad_())


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale):
    finite_in_half_precision(lambda x: cskd_loss(x, -x, 4.0), scale * torch.eye(3))


def test_partners_pass_after_the_batch_in_training_mode_without_gradient():
    class Network(torch.nn.Sequential):
        def forward(self, images):
            logits = super().forward(images)
            passes.append((logits.requires_grad, self.training, len(images)))
            return logits

    class Objective(torch.nn.Module):
        def forward(self, inputs):
            seen.append(inputs)
            return {"loss": inputs.student.logits_BC.sum()}

    passes, seen = [], []
    network = Network(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(12, 2))
    learner = Learner(FeatureExtractor(network, torch.nn.Identity(), None, [], False), Objective(), partners=True)
    images, partners = torch.rand(4, 3, 2, 2), 5 + torch.rand(4, 3, 2, 2)
    learner(images, torch.zeros(4, dtype=torch.long), view=(partners, None))
    assert passes == [(True, True, 4), (False, True, 4)]
    assert seen[0].view.teacher is None
    # Each half by its own statistics, and both of them in the running ones, one after the other.
    expected = 0.9 * 0.1 * images.mean(dim=(0, 2, 3)) + 0.1 * partners.mean(dim=(0, 2, 3))
    torch.testing.assert_close(network[0].running_mean, expected)
