"""Cutmix cuts the boxes that the original cuts, and counts what was really cut."""

import numpy as np
import pytest
import torch
from timm.data.mixup import cutmix_bbox_and_lam

from distillery.data.orders import shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.experiment.schema.recipe import Mix
from distillery.training.mixing import Mixing


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
    mixing = Mixing(Mix(**mix), 3, 0)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    for step in range(8):
        ours = mixing(images, torch.tensor([0, 1, 2, 0]), 1, step)[0]
        alike = mixing.alike(images, 8, 1, step)
        larger = mixing.alike(images.repeat_interleave(2, 2).repeat_interleave(2, 3), 8, 1, step)
        torch.testing.assert_close(alike, ours)
        torch.testing.assert_close(larger, ours.repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("mix", [{"mixup": 0.8}, {"cutmix": 1.0}])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_a_step_mixes_the_same_images_in_any_number_of_parts(mix, world_size, accumulation):
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(24) % 5

    def mixed(**parts):
        ranks = [GlobalBatches(shuffled_order(24, 0), 24, 12, rank=rank, paired=True, **parts)
                 for rank in range(parts["world_size"])]  # fmt: skip
        found = {}
        for batches in ranks:
            for number, samples in enumerate(batches):
                step, ids = number // parts["accumulation"], [sample.index for sample in samples]
                shown, target = Mixing(Mix(**mix), 5, 0)(images[ids], labels[ids], 0, step)
                found |= {(step, index): each for index, *each in zip(ids, shown, target, strict=True)}
        return found

    whole = mixed(world_size=1, accumulation=1)
    parts = mixed(world_size=world_size, accumulation=accumulation)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(a, b) for key in whole for a, b in zip(whole[key], parts[key], strict=True))
