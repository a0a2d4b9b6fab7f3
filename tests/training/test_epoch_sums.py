"""Sums over an epoch: added when they are asked for, to the bits of adding them step by step."""

import pytest
import torch

from distillery.training.epoch_sums import EpochSums


@pytest.mark.parametrize("asked_every", [1, 3, 100])
def test_sums_are_those_of_adding_step_by_step_whenever_they_are_asked_for(asked_every):
    torch.manual_seed(0)
    sums, resumed_at = EpochSums({}), 7
    expected: dict[str, float] = {}
    right = images = 0
    for step in range(11):
        if step == resumed_at:
            sums = EpochSums(sums.totals())
        count = 5 + step % 3
        values = {"loss": torch.rand(()) * 1e3, "ce": torch.randn(()) * 1e-3, "none": torch.tensor(-0.0)}
        logits_BC, target = torch.randn(count, 4), torch.randint(4, (count,))
        sums.add(step, values, logits_BC, target, torch.arange(count))
        for name, value in values.items():
            product = (value * count).double().item()
            expected[name] = expected[name] + product if name in expected else product
        right += int((logits_BC.argmax(dim=1) == target).sum())
        images += count
        if step % asked_every == 0:
            assert sums.means()["loss"] == expected["loss"] / images
    totals = sums.totals()
    assert totals == {"images": images, "labelled": images, "correct": right, **expected}
    assert str(totals["none"]) == "-0.0"
    assert sums.means()["top1"] == 100 * right / images
    assert len(sums.take_recent().seen) == 11 - resumed_at
    assert EpochSums({}).totals() == {"images": 0.0, "labelled": 0.0}
