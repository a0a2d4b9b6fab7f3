"""Steps with NaN: left out of a run where it says so, and never saved."""

import csv
import json
import os
from itertools import count

import pytest
import torch
from safetensors.torch import load_file

from distillery.cluster.signals import Stopped
from distillery.distill.losses.cross_entropy import CrossEntropy
from distillery.errors import UserError
from distillery.training import build

pytestmark = pytest.mark.slow


@pytest.fixture
def nan_at(monkeypatch):
    """Let the cross-entropy of steps, by their epoch and fraction of it, be NaN; in one rank alone, if that is said."""
    original = CrossEntropy.forward

    def arrange(*places, rank=None):
        def forward(self, inputs):
            struck = inputs.epoch in places and str(rank or 0) == os.environ.get("RANK", "0")
            return original(self, inputs) * (float("nan") if struck else 1.0)

        monkeypatch.setattr(CrossEntropy, "forward", forward)

    return arrange


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_step_with_nan_is_left_out_and_named(workplace, nan_at, capsys):
    workplace.edit_recipe("on_nan: skip")
    nan_at(0.25, 1.5)
    folder = workplace.make()
    skipped = record(folder)["skipped"]
    assert [(each["epoch"], each["step"]) for each in skipped] == [(1, 2), (2, 3)]
    assert all("ce nan; sample ids " in each["what"] for each in skipped)
    said = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(said) == 2
    assert said[0].startswith("small/seed0: warning: epoch 1, left out because of NaN or infinity: step 2: ce nan")
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert (float(rows[0]["train_top1"]) * 24 / 100) == pytest.approx(round(float(rows[0]["train_top1"]) * 24 / 100))


def test_a_run_without_nan_is_the_same_whatever_it_would_do(workplace):
    stop = workplace.make()
    workplace.edit_recipe("on_nan: skip")
    skip = workplace.make(results="skip")
    for name in ("weights.safetensors", "history.csv"):
        assert (stop / name).read_bytes() == (skip / name).read_bytes()
    assert record(skip)["skipped"] == []
    assert "skipped" not in record(stop)
    assert record(stop)["digest"] != record(skip)["digest"]


@pytest.mark.parametrize("extra", ["", "clip_norm: 1.0\nema: {decay: 0.5}"])
@pytest.mark.parametrize("run", ["small", "contrasted"])
def test_a_left_out_step_moves_no_statistic(workplace, monkeypatch, run, extra):
    """Images of NaN reach every batch norm of the student, and in accumulation after a sound micro-batch."""
    line = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, crd: {negatives: 9}}}"
    workplace.edit("  tables:", f"    contrasted: {line}\n  tables:")
    workplace.edit_recipe(f"on_nan: skip\n{extra}".rstrip())
    if run != "small":
        workplace.make("big")
    original, calls = build.begin_network, count()

    def begin(job):
        network = original(job)

        def strike(module, args):
            return (args[0] * float("nan"),) if module.training and next(calls) == 5 else None

        network.conv1.register_forward_pre_hook(strike)
        return network

    monkeypatch.setattr(build, "begin_network", begin)
    folder = workplace.make(run, device_batch=4)
    assert [(each["epoch"], each["step"]) for each in record(folder)["skipped"]] == [(1, 3)]
    for name, value in load_file(folder / "weights.safetensors").items():
        assert bool(value.isfinite().all()), name
        if name.endswith("num_batches_tracked"):
            assert value == 14 or extra  # of 7 steps; the average's is another


def test_a_stopped_run_goes_on_past_a_step_that_was_left_out(workplace, nan_at, stop_after):
    workplace.edit_recipe("on_nan: skip")
    nan_at(0.25, 1.0)
    straight = workplace.make(results="straight")
    with pytest.MonkeyPatch.context():
        stop_after(3)
        with pytest.raises(Stopped):
            workplace.make()
        folder = workplace.make()
    for name in ("weights.safetensors", "history.csv"):
        assert (straight / name).read_bytes() == (folder / name).read_bytes()
    assert record(folder)["skipped"] == record(straight)["skipped"]


@pytest.mark.parametrize(("epochs", "said"), [(4, "10 steps in a row were left out"), (1, "all steps were left out")])
def test_a_run_of_nothing_but_nan_ends_in_one_line(workplace, nan_at, epochs, said):
    workplace.edit_recipe(f"on_nan: skip\nepochs: {epochs}\nschedule: {{name: constant}}")
    if epochs == 4:
        workplace.edit_recipe("batch: 3")
    steps = 12 if epochs == 4 else 4
    nan_at(*(step / steps for step in range(steps)))
    with pytest.raises(UserError, match=said) as error:
        workplace.make()
    assert "\n" not in str(error.value)
    assert not list(workplace.results.rglob("run.json"))


def test_statistics_that_are_nan_are_never_saved(workplace, monkeypatch):
    original, steps = torch.optim.SGD.step, []

    def step(self, *arguments, **options):
        steps.append(original(self, *arguments, **options))
        if len(steps) == 2:
            networks[0].bn1.running_var[0] = float("nan")

    networks, begin = [], build.begin_network
    monkeypatch.setattr(build, "begin_network", lambda job: networks.append(begin(job)) or networks[0])
    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(UserError, match=r"weight student\.bn1\.running_var is NaN or infinite after step 2 in epoch 1"):
        workplace.make(checkpoint_seconds=0.0)
