import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from distillery.distill.losses.cross_entropy import cross_entropy_loss


@pytest.mark.parametrize("name", ["ls_kd_B16_C10", "ls_kd_B4_C200"])
def test_smoothed_labels_reproduce_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    for alpha in stored.meta["alphas"]:
        logits = stored.leaf("logits")
        with precision.context():
            loss = cross_entropy_loss(logits, stored["labels"], label_smoothing=alpha)
        loss.backward()
        precision.close(loss, stored.exact(f"ls_{alpha}_loss"))
        precision.close(logits.grad, stored.exact(f"ls_{alpha}_grad"))


@pytest.mark.parametrize("name", ["usi_B8_C10_a5.0_im2tres", "usi_B4_C9_a2.5_inc2im"])
def test_mixed_labels_reproduce_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    with precision.context():
        loss = cross_entropy_loss(stored["student_logits"], stored.exact("mixed_target").to(precision.dtype))
    precision.close(loss, stored.exact("ce_loss"))


@given(smoothing=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_smoothing_is_mixing_with_the_uniform_distribution(smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(6, 7, dtype=torch.float64, generator=generator)
    labels = torch.randint(7, (6,), generator=generator)
    mixed = (1 - smoothing) * F.one_hot(labels, 7).double() + smoothing / 7
    expected = -(mixed * F.log_softmax(logits, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(cross_entropy_loss(logits, labels, smoothing), expected)
    torch.testing.assert_close(cross_entropy_loss(logits, mixed), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_gradient_is_the_derivative(soft):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.tensor([0, 4, 2, 2])
    if soft:
        target = torch.rand(4, 5, dtype=torch.float64, generator=generator).softmax(dim=1)
    assert torch.autograd.gradcheck(lambda z: cross_entropy_loss(z, target, 0.1), logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    loss = cross_entropy_loss(logits, torch.tensor([1, 0]), 0.1)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert logits.grad.isfinite().all()


def test_smoothed_and_mixed_targets_are_the_originals(golden):
    """BAKE's targets for cutmix: smoothed one-hot rows 0, 3, 2, mixed with rows 1, 3, 4 at lambda 0.37."""
    stored, _ = golden("bake_transforms")
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = torch.tensor([0, 3, 2]), torch.tensor([1, 3, 4])

    def given(name):
        return -(torch.from_numpy(stored[name]).double() * logits.log_softmax(1)).sum(1).mean()

    torch.testing.assert_close(cross_entropy_loss(logits, first, 0.1), given("smooth01"), rtol=1e-6, atol=0)
    mixed = 0.37 * F.one_hot(first, 5).double() + 0.63 * F.one_hot(second, 5).double()
    torch.testing.assert_close(cross_entropy_loss(logits, mixed, 0.1), given("mix_lam037"), rtol=1e-6, atol=0)
