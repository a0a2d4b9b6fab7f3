"""Normalisation of images on the device."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distillery.errors import UserError
from distillery.experiment.schema.block import Statistics
from distillery.experiment.schema.recipe import Preprocess
from distillery.models.normalize import Normalize, resolve_statistics

TRAINING_IMAGES = Statistics(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
positive = st.floats(0.01, 10)


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=3, max_size=3), st.lists(positive, min_size=3, max_size=3))
def test_bytes_and_floats_are_normalised_alike(mean, std):
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    normalize = Normalize(mean, std)
    columns = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    expected = (images.float() / 255 - next(columns)) / next(columns)
    assert torch.equal(normalize(images), expected)
    assert torch.equal(normalize(images.float() / 255), expected)
    assert torch.allclose(normalize(images.double() / 255), expected, atol=1e-4)
    assert normalize(images.double() / 255).dtype == torch.float32


def test_the_images_given_are_left_alone():
    images = torch.rand(1, 3, 2, 2)
    before = images.clone()
    Normalize([0.5] * 3, [0.5] * 3)(images)
    assert torch.equal(images, before)


def test_normalisation_adds_nothing_to_a_state_dict():
    assert not Normalize([0.5] * 3, [0.5] * 3).state_dict()
    assert "mean=[0.5, 0.5, 0.5]" in repr(Normalize([0.5] * 3, [0.5] * 3))


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("dataset", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("none", (0, 0, 0), (1, 1, 1)),
        ({"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5]}, (0.1, 0.1, 0.1), (0.5, 0.5, 0.5)),
    ],
)
def test_statistics_are_those_asked_for(normalize, mean, std):
    assert resolve_statistics(Preprocess(size=8, normalize=normalize), TRAINING_IMAGES) == (mean, std)


def test_a_constant_channel_is_said():
    blank = Statistics(mean=(0.1, 0.2, 0.3), std=(0.4, 0.0, 0.6))
    with pytest.raises(UserError, match=r"preprocess\.normalize: .*\(0\.4, 0\.0, 0\.6\).*normalize: none"):
        resolve_statistics(Preprocess(size=8), blank)
    assert resolve_statistics(Preprocess(size=8, normalize="imagenet"), blank)
    with pytest.raises(ValidationError, match=r"each `std` must be 0\.001 or more"):
        Preprocess(size=8, normalize=blank)
