"""Cutmix cuts the boxes that the original cuts, and counts what was really cut."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm.data.mixup import cutmix_bbox_and_lam

from distillery.experiment.schema.recipe import Mix
from distillery.randomness import seed_generators
from distillery.training.inputs import build_mix, mixed_alike


def test_boxes_are_the_originals(golden):
    stored, meta = golden("bake_transforms")
    np.random.seed(meta["seed"])
    for share, (*box, corrected) in zip((0.1, 0.5, 0.9), stored["rand_bbox"], strict=True):
        (top, bottom, left, right), lam = cutmix_bbox_and_lam((3, 224, 224), share)
        # The original calls the first axis x.
        assert (top, left, bottom, right) == tuple(box)
        assert abs(lam - corrected) < 1e-12


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0, "p": 0.7}])
def test_a_teachers_squares_are_mixed_as_the_students(mix):
    mix = build_mix(SimpleNamespace(mix=Mix(**mix)), 3)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    for step in range(8):
        seed_generators(0, "mix", step)
        ours = mix(images, torch.tensor([0, 1, 2, 0]))[0]
        seed_generators(0, "mix", step)
        alike = mixed_alike(mix, images, 8)
        seed_generators(0, "mix", step)
        larger = mixed_alike(mix, images.repeat_interleave(2, 2).repeat_interleave(2, 3), 8)
        torch.testing.assert_close(alike, ours)
        torch.testing.assert_close(larger, ours.repeat_interleave(2, 2).repeat_interleave(2, 3))
