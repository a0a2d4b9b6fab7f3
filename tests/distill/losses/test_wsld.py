import torch
from torch.nn import functional as F

from distillery.distill.losses.wsld import wsld_loss

LABELS = torch.tensor([0, 4, 2, 2])


def pair():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_value_and_gradient_are_those_of_the_formula():
    student, teacher = pair()
    student.requires_grad_()
    loss = wsld_loss(student, teacher, LABELS, 3.0)
    loss.backward()
    with torch.no_grad():
        ours, theirs = (F.cross_entropy(z, LABELS, reduction="none") for z in (student, teacher))
        counts = 1 - torch.exp(-ours / (theirs + 1e-7))
        q, p = (teacher / 3).softmax(1), (student / 3).softmax(1)
        torch.testing.assert_close(loss.detach(), -9 * (counts * (q * p.log()).sum(1)).mean())
        torch.testing.assert_close(student.grad, 3 * counts[:, None] * (p - q) / 4)


def test_an_image_counts_less_where_the_student_is_surer_than_the_teacher():
    logits = torch.tensor([[9.0, 0.0, 0.0]], dtype=torch.float64)
    unsure = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([0])
    ahead = logits.clone().requires_grad_()
    behind = unsure.clone().requires_grad_()
    wsld_loss(ahead, unsure, label, 1.0).backward()
    wsld_loss(behind, logits, label, 1.0).backward()
    assert ahead.grad.abs().max() < 0.01 * behind.grad.abs().max()


def test_certain_and_right_networks_count_an_image_for_nothing():
    sure = torch.tensor([[1e4, 0.0, 0.0]], requires_grad=True)
    loss = wsld_loss(sure, sure.detach(), torch.tensor([0]), 1.0)
    loss.backward()
    assert loss == 0
    assert sure.grad.isfinite().all()
