import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery.distill.losses.dist import dist_loss, dist_parts


def pair(seed=0, batch=6, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(batch, classes, dtype=torch.float64, generator=generator) for _ in range(2)]


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 8))
def test_both_parts_are_one_less_the_mean_of_pearsons_correlations(seed, temperature):
    student, teacher = pair(seed)
    p, q = ((z / temperature).softmax(1).numpy() for z in (student, teacher))
    rows = [1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]) for x, y in ((p, q), (p.T, q.T))]
    found = [part.item() for part in dist_parts(student, teacher, temperature)]
    np.testing.assert_allclose(found, temperature**2 * np.array(rows), rtol=1e-4, atol=1e-6)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn():
    student, _ = pair()
    student.requires_grad_()
    loss = dist_loss(student, student.detach())
    loss.backward()
    assert loss < 1e-4
    assert student.grad.abs().max() < 1e-4


def test_one_image_has_classes_but_no_relations_within_them():
    student, teacher = pair(batch=1)
    student.requires_grad_()
    inter, intra = dist_parts(student, teacher, 1.0)
    assert intra == 1
    assert inter < 2
    intra.backward(retain_graph=True)
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("student", [torch.zeros(3, 4), torch.full((3, 7), 0.1), torch.eye(4)[:3] * 1e4])
def test_flat_and_certain_answers_get_no_explosion(student):
    student = student.clone().requires_grad_()
    loss = dist_loss(student, torch.randn(student.shape, generator=torch.Generator().manual_seed(0)), 4.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.abs().max() < 100
