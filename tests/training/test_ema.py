"""The moving average of the weights is the original's, number by number."""

import torch
from torch import nn

from distillery.experiment.schema.recipe import Recipe
from distillery.training.build import _ema


def test_updates_reproduce_the_original(golden):
    stored, meta = golden("usi_ema")
    student = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()

    def state(prefix):
        return {name: torch.from_numpy(stored[f"{prefix}.{name}"].copy()) for name in student.state_dict()}

    student.load_state_dict(state("init"))
    recipe = Recipe.model_validate(
        {
            "epochs": 1,
            "batch": 8,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "schedule": {"name": "constant"},
            "preprocess": {"size": 8},
            "ema": {"decay": meta["decay"]},
        }
    )
    average = _ema(recipe, student)
    for step in range(meta["updates"]):
        student.load_state_dict(state(f"step{step}"))
        average.update(student)

    for name, expected in state("ema").items():
        actual = average.module.state_dict()[name]
        # Nothing reads the number of batches seen: the original truncates its average, and copying it is as good.
        if expected.is_floating_point():
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
            assert not torch.equal(actual, torch.from_numpy(stored[f"init.{name}"]))
