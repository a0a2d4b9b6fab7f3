"""Lighting adds what BAKE's code adds."""

import pytest
import torch
from torch import Tensor

from distillery.data.augment.lighting import EIGENVALUES, EIGENVECTORS, add_shifts, draw_shift, lighting_shift
from distillery.data.loader import Batch
from distillery.data.transforms import train_transform
from distillery.experiment.schema.augmentation import Lighting
from distillery.experiment.schema.recipe import Preprocess
from distillery.models.normalize import Normalize


def from_bgr(array) -> Tensor:
    return torch.from_numpy(array).flip(0)[None]


def test_it_is_the_original_lighting(golden):
    """The stored images are BGR; the shift is that of the same colours."""
    stored, _ = golden("bake_transforms")
    shifts = lighting_shift(torch.from_numpy(stored["alpha"])[0])[None]
    lit = add_shifts(from_bgr(stored["im"]), shifts)
    torch.testing.assert_close(lit, from_bgr(stored["lighting"]), rtol=1e-12, atol=1e-12)
    normalize = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(normalize(lit).double(), from_bgr(stored["color_norm"]), rtol=1e-5, atol=1e-5)


def test_shifts_have_the_deviation_of_the_principal_axes():
    torch.manual_seed(0)
    drawn = torch.stack([draw_shift(0.1) for _ in range(4000)]).double()
    expected = (EIGENVECTORS * EIGENVALUES) @ (EIGENVECTORS * EIGENVALUES).T * 0.01
    torch.testing.assert_close(drawn.T.cov(), expected, rtol=0.08, atol=1e-7)
    assert drawn.mean(0).abs().max() < 0.002


def test_images_travel_as_bytes_and_are_lit_on_the_device():
    images = torch.tensor([[0, 255], [100, 200]], dtype=torch.uint8).repeat(2, 3, 1, 1)
    shifts = torch.tensor([[0.1, -0.1, 0.0], [0.0, 0.0, 0.5]])
    labels = torch.zeros(2, dtype=torch.int64)
    moved = Batch(images, labels, labels, shifts).to("cpu")
    assert moved.shifts is None
    torch.testing.assert_close(moved.images, images.float() / 255 + shifts[:, :, None, None])
    assert moved.images.min() < 0
    assert moved.images.max() > 1
    again = moved.to("cpu")
    assert torch.equal(again.images, moved.images)


@pytest.mark.parametrize("std", [0.1, 0.0])
def test_a_recipe_lights_after_all_else(std):
    transform = train_transform(Preprocess(size=4), (Lighting(name="lighting", std=std),))
    shift = transform.draw_shift()
    assert shift.shape == (3,)
    assert bool(shift.abs().sum() > 0) == (std > 0)
    assert train_transform(Preprocess(size=4), ()).draw_shift() is None
