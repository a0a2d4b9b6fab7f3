"""Optimizers and the composed learning rates, against the schedules of the reference systems."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.optim import list_optimizers
from torch import nn

from distillery.errors import UserError
from distillery.experiment.schema.recipe import Recipe
from distillery.training.optim import build_optimizer, check_optimizer, hyper_parameters, learning_rate, total_epochs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "schedules.npz", allow_pickle=False)


def recipe(epochs, lr, schedule, **more):
    optimizer = {"name": "sgd", "lr": lr}
    return Recipe(epochs=epochs, batch=8, optimizer=optimizer, schedule=schedule, preprocess={"size": 8}, **more)


MGD_WARMUP = {"name": "ratio", "epochs": 10, "extends": True}
REFERENCES = {
    "mgd_plain": recipe(100, 0.1, {"name": "step", "drops": [31, 61, 81]}),
    "mgd_warmup": recipe(120, 0.1, {"name": "step", "drops": [31, 61, 81], "warmup": MGD_WARMUP}),
    "bake_imagenet": recipe(100, 0.4, {"name": "cosine", "warmup": {"name": "ratio", "epochs": 5}}),
    "bake_imagenet_b": recipe(100, 0.1, {"name": "cosine", "warmup": {"name": "ratio", "epochs": 5}}),
    "bake_small": recipe(200, 0.1, {"name": "step", "drops": [101, 151]}),
    "usi": recipe(
        300,
        2e-3,
        {"name": "cosine", "min_lr": 1e-6, "cooldown": 10, "warmup": {"name": "absolute", "epochs": 5, "lr": 1e-4}},
    ),
    "ls_teacher_imagenet": recipe(90, 0.1, {"name": "step", "every": 30}),
    "ls_student_imagenet": recipe(200, 0.1, {"name": "step", "every": 80, "warmup": {"name": "stepwise", "epochs": 5}}),
    "ls_student_cub": recipe(200, 0.01, {"name": "step", "every": 80}),
    "ls_teacher_cub": recipe(90, 0.01, {"name": "step", "every": 30}),
}


def test_every_reference_schedule_has_its_recipe():
    assert set(REFERENCES) == set(GOLDEN.files) - {"meta"}, json.loads(str(GOLDEN["meta"]))


@pytest.mark.parametrize("name", REFERENCES)
def test_recipes_give_the_learning_rates_of_the_reference_systems(name):
    expected = GOLDEN[name] if GOLDEN[name].ndim == 2 else GOLDEN[name][:, None]
    epochs, steps = expected.shape
    assert total_epochs(REFERENCES[name]) == epochs
    found = [[learning_rate(REFERENCES[name], epoch, step, steps) for step in range(steps)] for epoch in range(epochs)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("min_lr", [0.0, 0.01])
def test_a_cosine_with_restarts_is_torchs(min_lr):
    restarting = recipe(25, 0.1, {"name": "cosine", "min_lr": min_lr, "restart_every": 10, "cooldown": 2})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=10, eta_min=min_lr)
    for epoch in range(25):
        assert learning_rate(restarting, epoch, 0, 1) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()
    assert [learning_rate(restarting, epoch, 0, 1) for epoch in (25, 26)] == [min_lr, min_lr]


def optimizer(**block):
    return Recipe.model_validate(REFERENCES["usi"].model_dump() | {"optimizer": block}).optimizer


def test_sgd_decays_every_weight():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(REFERENCES["mgd_plain"].optimizer, network)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == 4


@pytest.mark.parametrize(("name", "exempt"), [("adamw", "2.weight"), ("lamb", "2.weight"), ("adamw", "2.*")])
def test_others_spare_vectors_and_the_models_exemptions(name, exempt):
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    built = build_optimizer(optimizer(name=name, lr=0.002, weight_decay=0.02), network, exempt={exempt})
    decayed, spared = built.param_groups
    assert [parameter.shape for parameter in decayed["params"]] == [torch.Size([4, 3, 1, 1])]
    assert decayed["weight_decay"] == 0.02
    assert len(spared["params"]) == 4
    assert spared["weight_decay"] == 0


def test_frozen_weights_are_left_out():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    optimizer = build_optimizer(REFERENCES["mgd_plain"].optimizer, network)
    assert len(optimizer.param_groups[0]["params"]) == 1


def test_sgd_and_adamw_are_torchs_with_the_recipes_own_arguments():
    network = nn.Linear(2, 2)
    (sgd,) = build_optimizer(optimizer(name="sgd", lr=0.1), network).param_groups
    assert (sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.9, False, 0.0)
    adamw = build_optimizer(optimizer(name="adamw", lr=0.1, betas=[0.5, 0.9], eps=1e-4), network)
    assert isinstance(adamw, torch.optim.AdamW)
    assert [(group["betas"], group["eps"], group["weight_decay"]) for group in adamw.param_groups] == [
        ((0.5, 0.9), 1e-4, 0.01),
        ((0.5, 0.9), 1e-4, 0.0),
    ]


def test_the_defaults_of_an_optimizer_are_on_record():
    (group,) = hyper_parameters(build_optimizer(optimizer(name="lamb", lr=0.1), nn.Linear(2, 2, bias=False)))
    assert {key: group[key] for key in ("params", "betas", "eps", "max_grad_norm", "weight_decay")} == {
        "params": 1, "betas": [0.9, 0.999], "eps": 1e-6, "max_grad_norm": 1.0, "weight_decay": 0.0,
    }  # fmt: skip
    assert "lr" not in group


def step(network, built, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 6, 6, generator=generator)
    nn.functional.cross_entropy(network(images), torch.arange(8) % 5).backward()
    built.step()
    built.zero_grad(set_to_none=True)


def begun(name):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
    return network, build_optimizer(optimizer(name=name, lr=0.01, weight_decay=1e-3), network)


@pytest.mark.parametrize(
    "block",
    [
        {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
        {"name": "sgd", "momentum": 0.9, "nesterov": True},
        {"name": "adamw", "weight_decay": 0.05},
    ],
)
def test_all_parameters_at_once_step_to_the_bits_of_one_by_one(block):
    weights = []
    for foreach in (True, False):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5))
        built = build_optimizer(optimizer(lr=0.01, **block), network)
        assert all(group["foreach"] for group in built.param_groups)
        for group in built.param_groups:
            group["foreach"] = foreach
        for seed in range(9):
            step(network, built, seed)
        weights.append(network.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# APEX and bitsandbytes come with neither timm nor a CPU; AdaHessian needs second derivatives.
USABLE = [name for name in list_optimizers() if not name.startswith(("fused", "bnb")) and name != "adahessian"]


# Three of them compile themselves when they take their first step, and one of these may in the sweep.
@pytest.mark.parametrize("name", [*USABLE, pytest.param("kron", marks=pytest.mark.sweep, id="kron compiled")])
def test_every_optimizer_of_timm_trains_and_resumes_to_the_bit(name, tmp_path, monkeypatch, request):
    if "compiled" not in request.node.name:
        monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    network, built = begun(name)
    first = {key: value.clone() for key, value in network.state_dict().items()}
    for seed in (0, 1):
        step(network, built, seed)
    torch.save((network.state_dict(), built.state_dict()), tmp_path / "checkpoint.pt")
    step(network, built, 2)
    resumed, other = begun(name)
    weights, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    step(resumed, other, 2)
    assert hyper_parameters(other) == hyper_parameters(built)
    for key, value in network.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key
        assert value.isfinite().all(), key
    assert not torch.equal(network[0].weight, first["0.weight"])


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"name": "lam"}, "optimizer.name: timm has no 'lam'; did you mean 'lamb'"),
        ({"name": "adahessian"}, "optimizer.name: 'adahessian' needs second derivatives"),
        ({"name": "fusedadam"}, "optimizer.name: 'fusedadam' cannot be used here: "),
        ({"name": "lamb", "momentum": 0.9}, "optimizer.momentum: lamb has no argument 'momentum'; "),
        (
            {"name": "lars", "momentun": 0.9},
            "optimizer.momentun: lars has no argument 'momentun'; did you mean 'momentum'",
        ),
        (
            {"name": "lion", "betas": [0.9, 2]},
            "optimizer.betas: [0.9, 2] is not valid; input should be at least 0 and less than 1",
        ),
    ],
)
def test_a_wrong_optimizer_is_one_line(block, line):
    with pytest.raises(UserError, match=f"^{re.escape(line)}") as caught:
        check_optimizer(optimizer(lr=0.1, **block))
    assert "\n" not in str(caught.value)
