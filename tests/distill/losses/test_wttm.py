import pytest
import torch

from distillery.distill.losses.kd import kd_loss
from distillery.distill.losses.wttm import wttm_loss


def pair():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_an_exponent_of_one_is_kd_at_temperature_one_with_either_weighting():
    student, teacher = pair()
    for weighted in (True, False):
        torch.testing.assert_close(wttm_loss(student, teacher, 1.0, weighted), kd_loss(student, teacher, 1.0))


@pytest.mark.parametrize("gamma", [0.1, 0.7, 2.0])
def test_images_count_by_the_sum_of_the_teachers_powers(gamma):
    student, teacher = pair()
    power = teacher.softmax(dim=1) ** gamma
    share = power / power.sum(dim=1, keepdim=True)
    divergence = (share * (share.log() - student.log_softmax(dim=1))).sum(dim=1)
    torch.testing.assert_close(wttm_loss(student, teacher, gamma, weighted=False), divergence.mean())
    torch.testing.assert_close(wttm_loss(student, teacher, gamma), (power.sum(dim=1) * divergence).mean())


def test_powers_of_tiny_probabilities_do_not_underflow():
    """exp(-200) is 0 in float32; its hundredth root is 0.14."""
    teacher = torch.tensor([[0.0, -200.0, -200.0]])
    exact = wttm_loss(torch.zeros(1, 3, dtype=torch.float64), teacher.double(), 0.01)
    torch.testing.assert_close(wttm_loss(torch.zeros(1, 3), teacher, 0.01).double(), exact, rtol=1e-5, atol=0)
