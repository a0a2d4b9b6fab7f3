import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from distillery.distill.losses.cross_entropy import cross_entropy_loss
from distillery.distill.losses.kd import kd_loss


@pytest.mark.parametrize("name", ["ls_kd_B16_C10", "ls_kd_B4_C200"])
def test_every_temperature_reproduces_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    for temperature in stored.meta["Ts"]:
        logits = stored.leaf("logits")
        with precision.context():
            loss = kd_loss(logits, stored["teacher_logits"], temperature)
        loss.backward()
        precision.close(loss, stored.exact(f"kd_{temperature}_loss"))
        precision.close(logits.grad, stored.exact(f"kd_{temperature}_grad"))


@pytest.mark.parametrize("name", ["usi_B8_C10_a5.0_im2tres", "usi_B4_C9_a2.5_inc2im", "usi_B6_C12_a5.0_kdonly_im2tres"])
def test_usi_is_soft_cross_entropy_and_kd_at_temperature_one(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    logits = stored.leaf("student_logits")
    with precision.context():
        loss = stored.meta["alpha_kd"] * kd_loss(logits, stored["teacher_logits"], 1.0)
        if not stored.meta["use_kd_only_loss"]:
            loss = loss + cross_entropy_loss(logits, stored["mixed_target"])
    loss.backward()
    precision.close(loss, stored.exact("total_loss"))
    precision.close(logits.grad, stored.exact("grad_logits"))


def pair(seed, batch=5, classes=7, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(batch, classes, dtype=torch.float64, generator=generator) for _ in range(2)]


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.25, 100))
def test_value_and_gradient_are_those_of_the_formula(seed, temperature):
    student, teacher = pair(seed)
    student.requires_grad_()
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    p, q = (softmax(z.detach().numpy() / temperature, axis=1) for z in (student, teacher))
    np.testing.assert_allclose(loss.item(), temperature**2 * rel_entr(q, p).sum() / 5, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(student.grad, temperature * (p - q) / 5, rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 2**31))
def test_order_of_the_batch_and_a_shift_of_the_logits_change_nothing(seed):
    student, teacher = pair(seed)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    loss = kd_loss(student, teacher, 4.0)
    torch.testing.assert_close(kd_loss(student[order], teacher[order], 4.0), loss)
    torch.testing.assert_close(kd_loss(student + 11, teacher - 3, 4.0), loss)
    assert kd_loss(student, student, 4.0).abs() < 1e-12


def test_gradient_is_the_derivative():
    student, teacher = pair(0)
    assert torch.autograd.gradcheck(lambda z: kd_loss(z, teacher, 4.0), student.requires_grad_())


def test_the_teacher_gets_no_gradient():
    student, teacher = (z.requires_grad_() for z in pair(0))
    kd_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 64.0])
def test_extreme_logits_stay_finite(dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]], dtype=dtype)
    loss = kd_loss(student, teacher, temperature)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert student.grad.isfinite().all()
