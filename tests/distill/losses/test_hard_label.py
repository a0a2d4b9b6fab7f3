import pytest
import torch
from torch.nn import functional as F

from distillery.distill.losses.hard_label import hard_label_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_teachers_first_largest_answer_is_the_label(smoothing):
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    teacher = torch.tensor([[0.0, 2.0, 1.0, 0.0], [3.0, 3.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.1]])
    expected = F.cross_entropy(student, torch.tensor([1, 0, 3]), label_smoothing=smoothing)
    torch.testing.assert_close(hard_label_loss(student, teacher, smoothing), expected)
    torch.testing.assert_close(hard_label_loss(student, 7 * teacher, smoothing), expected)
