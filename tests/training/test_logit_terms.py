"""Terms of logits in whole runs: with a learned temperature, and with a layer on a middle stage."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written

from distillery.cluster.signals import Stopped
from distillery.errors import UserError

EVERY = (
    "{ce: {}, kd: {temperature: learned}, dkd: {standardize: true, beta: 0.5}, nkd: {}, dist: {}, wttm: {}, wsld: {}, "
    "uskd: {compat: reference}, hard_label: {}}"
)


@pytest.fixture
def make(workplace):
    def add(keys):
        workplace.edit("  tables:", f"    student: {{model: cifar_resnet8, recipe: tiny, {keys}}}\n  tables:")
        return workplace.make

    return add


@pytest.mark.slow
def test_all_in_one_sum_train_and_a_stopped_run_ends_with_the_same_bytes(workplace, make, stop_after):
    run = make(f"teacher: big, objective: {EVERY}")
    run("big")
    straight = written(run("student"))
    stop_after(5)
    with pytest.raises(Stopped):
        run("student", results="stopped")
    assert written(run("student", results="stopped")) == straight


def test_nothing_of_a_layer_on_a_middle_stage_is_deployed(make):
    folder = make("objective: {uskd: {}}")("student")
    plain = load_file(folder / "weights.safetensors")
    assert not [name for name in plain if "weak" in name or "objective" in name]
    assert all(torch.isfinite(value).all() for value in plain.values() if value.is_floating_point())
    assert "head" not in json.loads((folder / "run.json").read_text())


def test_a_stage_that_a_network_has_not_is_named_with_its_run(make):
    with pytest.raises(
        UserError, match=r"tiny\.runs\.student\.objective\.uskd\.stage: no stage 3; the networks have 3"
    ):
        make("objective: {uskd: {stage: 3}}")("student")
