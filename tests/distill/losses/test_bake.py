import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from distillery.distill.losses.bake import (
    bake_loss,
    ensemble_targets,
    ensembling_loss,
    global_ensemble_targets,
    knowledge,
    propagate,
)
from distillery.distill.losses.cross_entropy import cross_entropy_loss

LOCAL = [
    "bake_local_B8_C10_w0.5_T4.0_f64",
    "bake_local_B32_C100_w0.5_T4.0_f64",
    "bake_local_B32_C100_w0.9_T4.0_f64",
    "bake_local_B2_C3_w0.5_T4.0_f64",
    "bake_local_B16_C20_w0.1_T1.0_f64",
    "bake_local_B16_C20_w0.0_T4.0_f64",
]


@pytest.mark.parametrize("name", LOCAL)
def test_one_process_reproduces_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    omega, temperature, weight = (stored.meta[key] for key in ("omega", "T", "lamda"))
    logits = stored.leaf("logits")
    with precision.context():
        targets = ensemble_targets(stored["feats"], logits, omega, temperature)
        kd = bake_loss(stored["feats"], logits, omega, temperature)
        total = cross_entropy_loss(logits, stored["labels"]) + weight * kd
    assert not targets.requires_grad
    precision.close(targets, stored.exact("targets"))
    precision.close(kd, stored.exact("kd_loss"))
    precision.close(total, stored.exact("total"))
    [kd_gradient] = torch.autograd.grad(kd, logits, retain_graph=True)
    precision.close(kd_gradient, stored.exact("grad_kd_logits"))
    [gradient] = torch.autograd.grad(total, logits)
    precision.close(gradient, stored.exact("grad_total_logits"))


@pytest.mark.parametrize("autocast", [False, True])
def test_float32_reproduces_the_original_in_float32(vectors, autocast):
    stored = vectors("bake_local_B64_C50_w0.5_T4.0_f32", torch.float32)
    logits = stored.leaf("logits")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        targets = ensemble_targets(stored["feats"], logits, 0.5, 4.0)
        loss = bake_loss(stored["feats"], logits, 0.5, 4.0)
    loss.backward()
    torch.testing.assert_close(targets, stored["targets"], rtol=3e-6, atol=1e-8)
    torch.testing.assert_close(loss, stored["kd_loss"], rtol=3e-6, atol=0)
    torch.testing.assert_close(logits.grad, stored["grad_kd_logits"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["bake_global_W2_B6_C9_w0.5", "bake_global_W4_B4_C11_w0.5"])
def test_many_processes_reproduce_the_original(vectors, precision, name):
    stored = vectors(name, precision.dtype)
    batch, omega, temperature = (stored.meta[key] for key in ("B", "omega", "T"))
    with precision.context():
        parts = [knowledge(f, z, temperature) for f, z in zip(stored["feats"], stored["logits"], strict=True)]
        unit_features, probabilities = (torch.cat(part) for part in zip(*parts, strict=True))
    for rank in range(stored.meta["world"]):
        logits = stored["logits"][rank].clone().requires_grad_()
        own = slice(rank * batch, (rank + 1) * batch)
        with precision.context():
            targets = global_ensemble_targets(unit_features, probabilities, omega, own)
            kd = ensembling_loss(logits, targets, temperature)
            total = cross_entropy_loss(logits, stored["labels"][rank]) + stored.meta["lamda"] * kd
        total.backward()
        precision.close(targets, stored.exact("targets")[rank])
        precision.close(kd, stored.exact("kd_loss")[rank])
        precision.close(logits.grad, stored.exact("grad_total_logits")[rank])


def batch_of(seed, images=6, features=4, classes=5, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(images, features, dtype=torch.float64, generator=generator),
        scale * torch.randn(images, classes, dtype=torch.float64, generator=generator),
    )


@given(seed=st.integers(0, 2**31), images=st.integers(1, 9), omega=st.floats(0, 0.98), temperature=st.floats(0.5, 64))
def test_targets_are_the_fixed_point_of_asking_the_neighbours(seed, images, omega, temperature):
    features, logits = batch_of(seed, images)
    targets = ensemble_targets(features, logits, omega, temperature).numpy()
    unit = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf if images > 1 else 0)
    neighbours, own = softmax(cosines, axis=1), softmax(logits.numpy() / temperature, axis=1)
    np.testing.assert_allclose((1 - omega) * own + omega * neighbours @ targets, targets, atol=1e-12)
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-12)
    assert (targets >= 0).all()


@given(seed=st.integers(0, 2**31))
def test_without_neighbours_share_the_targets_are_the_own_predictions(seed):
    features, logits = batch_of(seed)
    torch.testing.assert_close(ensemble_targets(features, logits, 0.0, 4.0), (logits / 4).softmax(dim=1))
    assert bake_loss(features, logits, 0.0, 4.0).abs() < 1e-12


@given(seed=st.integers(0, 2**31))
def test_targets_follow_the_order_of_the_batch_and_ignore_the_length_of_features(seed):
    features, logits = batch_of(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    targets = ensemble_targets(features, logits, 0.5, 4.0)
    torch.testing.assert_close(ensemble_targets(features[order], logits[order], 0.5, 4.0), targets[order])
    torch.testing.assert_close(ensemble_targets(3 * features, logits, 0.5, 4.0), targets)


def test_gradient_is_the_derivative_with_targets_held():
    features, logits = batch_of(0)
    logits.requires_grad_()
    targets = ensemble_targets(features, logits, 0.5, 4.0)
    assert torch.autograd.gradcheck(lambda z: ensembling_loss(z, targets, 4.0), logits)
    [gradient] = torch.autograd.grad(bake_loss(features, logits, 0.5, 4.0), logits)
    torch.testing.assert_close(gradient, 4.0 * ((logits / 4).softmax(dim=1) - targets) / 6)


def test_features_get_no_gradient():
    features, logits = (tensor.requires_grad_() for tensor in batch_of(0))
    bake_loss(features, logits, 0.5, 4.0).backward()
    assert features.grad is None


def test_gathered_knowledge_gets_no_gradient():
    features, probabilities = (tensor.softmax(dim=1).requires_grad_() for tensor in batch_of(0))
    assert not global_ensemble_targets(features, probabilities, 0.5, slice(2, 4)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [1.0, 64.0])
def test_extreme_logits_and_dead_features_stay_finite(dtype, temperature):
    logits = 1e4 * torch.tensor([[1, -1, 0], [-1, 1, 1], [0, 0, 1.0]]).to(dtype)
    logits.requires_grad_()
    features = torch.tensor([[0, 0], [6e4, -6e4], [1e-7, 0]]).to(dtype)
    loss = bake_loss(features, logits, 0.9, temperature)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("omega", [1.0, -0.1])
def test_a_share_that_never_settles_is_refused(omega):
    with pytest.raises(AssertionError, match="omega"):
        propagate(*knowledge(*batch_of(0), 4.0), omega)
