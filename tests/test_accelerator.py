"""Apple's GPU, pretended: what is chosen, what is refused, and that nothing asks it for what it lacks."""

import csv
import json

import pytest
import torch
from tests.pretended_mps import apples_gpu

from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.probe import probe_run
from distillery.evaluation.profile import profile_run
from distillery.experiment import load_experiment

OBJECTIVE = "objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}"
# What computes in float64, or draws on the device.
TERMS = "objective: {ce: {}, kd: {}, mgd: {}, overhaul: {}, masked_generative: {}, crd: {negatives: 4}}"


def without_times(folder):
    rows = csv.DictReader((folder / "history.csv").open())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_on_apples_gpu_is_that_of_the_cpu(workplace, monkeypatch):
    workplace.edit(OBJECTIVE, TERMS)
    workplace.edit_recipe("preprocess: {size: 16}")
    workplace.make("big")
    expected = workplace.make("taught", results="other")
    with apples_gpu(monkeypatch):
        made = workplace.make("taught")
        page = load_experiment(workplace.experiment)
        measured = evaluate_run(page, "taught", 0, workplace.results)
        probed = probe_run(page, "taught", 0, workplace.results)
    (session,) = json.loads((made / "run.json").read_text())["sessions"]
    assert session["device"] == "Apple GPU"
    assert without_times(made) == without_times(expected)
    assert measured == evaluate_run(page, "taught", 0, workplace.results)
    assert probed == probe_run(page, "taught", 0, workplace.results)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_profile_waits_for_apples_gpu(workplace, monkeypatch):
    workplace.make("big")
    waited = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append(1))
    monkeypatch.setattr("distillery.evaluation.profile.MEASURE_SECONDS", 0.01)
    with apples_gpu(monkeypatch):
        profile = profile_run(load_experiment(workplace.experiment), "big", workplace.results)
    assert (profile["device"], profile["threads"]) == ("Apple GPU", None)
    assert profile["gpu_throughput"] == profile["throughput"]
    assert waited


@pytest.mark.slow
def test_half_precision_is_not_tried(workplace, monkeypatch, capsys):
    workplace.edit_recipe("precision: bf16-mixed")
    with apples_gpu(monkeypatch):
        made = workplace.make("big")
    assert "precision: bf16-mixed is not to be had on an Apple GPU; training in 32-true" in capsys.readouterr().out
    (session,) = json.loads((made / "run.json").read_text())["sessions"]
    assert session["precision"] == "32-true"


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ("mps", r"DISTILLERY_DEVICE: torch \S+ finds no Apple GPU \(mps\) here; unset it to use the CPU"),
        (
            "gpu",
            "DISTILLERY_DEVICE: 'gpu' is not valid; it may be mps, or unset for an NVIDIA GPU where there is one, ",
        ),
    ],
)
def test_a_device_that_is_not_there_is_refused(workplace, monkeypatch, asked, line):
    monkeypatch.setenv("DISTILLERY_DEVICE", asked)
    with pytest.raises(UserError, match=line):
        workplace.make("big")


def test_several_processes_are_refused(workplace, monkeypatch):
    from distillery.training.devices import start_devices

    launched = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
    for name, value in (launched | {"TORCHELASTIC_RUN_ID": "one"}).items():
        monkeypatch.setenv(name, str(value))
    with (
        apples_gpu(monkeypatch),
        pytest.raises(UserError, match="--nproc-per-node: 2 processes cannot share"),
    ):
        start_devices(workplace.job().spec.recipe, None)


def test_dali_is_refused(workplace, monkeypatch):
    with apples_gpu(monkeypatch), pytest.raises(UserError, match="--loader: 'dali' is NVIDIA's"):
        workplace.make("big", loader="dali")
