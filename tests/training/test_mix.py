"""Cutmix cuts the boxes that the original cuts, and counts what was really cut."""

import numpy as np
from timm.data.mixup import cutmix_bbox_and_lam


def test_boxes_are_the_originals(golden):
    stored, meta = golden("bake_transforms")
    np.random.seed(meta["seed"])
    for share, (*box, corrected) in zip((0.1, 0.5, 0.9), stored["rand_bbox"], strict=True):
        (top, bottom, left, right), lam = cutmix_bbox_and_lam((3, 224, 224), share)
        # The original calls the first axis x.
        assert (top, left, bottom, right) == tuple(box)
        assert abs(lam - corrected) < 1e-12
