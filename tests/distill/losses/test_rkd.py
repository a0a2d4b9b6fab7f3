"""RKD against the original's stored losses and gradients."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.distill.losses import rkd
from distillery.distill.losses.rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss

GOLDEN = Path(__file__).parents[2] / "golden-zoo"


@pytest.mark.parametrize("piece", [rkd.PIECE, 1, 500])
@pytest.mark.parametrize("name", ["rkd_B8", "rkd_B3_ragged"])
def test_losses_and_gradients_equal_the_original(name, piece, monkeypatch):
    monkeypatch.setattr(rkd, "PIECE", piece)  # however many pieces the angles are computed in
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
        meta = json.loads(str(arrays["meta"]))
    losses = {
        "distance": rkd_distance_loss,
        "angle": rkd_angle_loss,
        "feat_s": lambda *both: rkd_loss(*both, meta["w_distance"], meta["w_angle"]),
    }
    for part, function in losses.items():
        student = stored["feat_s"].clone().requires_grad_()
        value = function(student, stored["feat_t"])
        value.backward()
        for found, key in ((value, "loss" if part == "feat_s" else part), (student.grad, f"grad.{part}")):
            scale = stored[key].abs().max().clamp_min(1e-4)
            assert (found - stored[key]).abs().max() <= 1e-9 * scale, key


def test_the_gradient_is_the_derivative():
    student, teacher = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda e: rkd_loss(e, teacher), student.requires_grad_())


def test_relations_do_not_see_shifts_scales_and_rotations():
    teacher = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert rkd_loss(3 * teacher @ rotation + 100, teacher) < 1e-12


@pytest.mark.parametrize("student", [torch.zeros(1, 3), torch.ones(4, 3), 1e4 + torch.eye(3)])
def test_single_and_equal_and_distant_embeddings_have_finite_gradients(student):
    student = student.clone().requires_grad_()
    loss = rkd_loss(student, torch.randn(len(student), 5, generator=torch.Generator().manual_seed(0)))
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_two_images_with_one_student_embedding_get_no_explosion():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 3, generator=generator)
    student[1] = student[0]
    student.requires_grad_()
    rkd_loss(student, torch.randn(5, 4, generator=generator)).backward()
    assert student.grad.abs().max() < 100
