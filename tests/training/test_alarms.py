"""Alarms: each fault is put into a run and caught there; healthy runs raise none, and none changes a bit."""

import json
from itertools import count, product

import pytest
import torch
from safetensors.torch import load_file

from distillery.cluster.signals import Stopped
from distillery.data import loader
from distillery.data.prepare import prepare_dataset
from distillery.distill.losses.kd import KD
from distillery.distill.teacher import Teacher
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import TERMS
from distillery.results import dead_terms
from distillery.training import alarms, build
from distillery.training.alarms import Alarms
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

pytestmark = pytest.mark.slow


@pytest.fixture
def taught(workplace, capsys):
    """Make the run ``taught`` with six epochs of four steps: its alarms in run.json, and its lines."""
    workplace.edit_recipe("epochs: 6")
    workplace.make("big")
    capsys.readouterr()

    def make(run="taught", **options):
        folder = workplace.make(run, **options)
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        found = json.loads((folder / "run.json").read_text())["alarms"]
        assert len(lines) == len(found)
        for alarm, line in zip(found, lines, strict=True):
            place = f"{run}/seed0: warning: epoch {alarm['epoch']}, step {alarm['step']}: "
            assert line == place + alarm["line"]
            assert "look " in line
        return {alarm["alarm"]: alarm for alarm in found}

    return make


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0"), (2.5, "2.5")])
def test_a_term_that_stays_at_one_value_is_named_after_twenty_steps(taught, monkeypatch, value, shown):
    monkeypatch.setattr(KD, "forward", lambda self, inputs: inputs.student.logits_BC.sum() * 0 + value)
    found = taught()["constant_term"]
    assert (found["term"], found["epoch"], found["step"], found["value"]) == ("kd", 5, 4, value)
    assert f"the term kd has been {shown} for 20 steps" in found["line"]


def test_a_rehearsal_names_a_dead_term_with_file_and_key(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr(KD, "forward", lambda self, inputs: inputs.student.logits_BC.sum() * 0)
    experiment = load_experiment(workplace.experiment, rehearsal=True)
    prepare_dataset("tiny", experiment.dataset, workplace.results / "datasets/tiny", workers=1)
    for run in ("big", "taught"):
        make_run(Job(experiment, run, 0, workplace.results, Machine(workers=0, threads=1)))
    (line,) = dead_terms(workplace.results)
    assert line.startswith(f"{workplace.experiment}: tiny.runs.taught.objective.kd: 0 for all images of a rehearsal")
    assert line in capsys.readouterr().err


def test_a_term_without_a_say_in_the_gradient_is_named(taught, workplace):
    workplace.edit("kd: {weight: 0.5", "kd: {weight: 1.0e-6")
    found = taught()["gradient_share"]
    assert (found["term"], found["epoch"], found["step"]) == ("kd", 5, 4)
    assert 0 < found["value"] < 1e-4
    assert "its weight (now 1e-06)" in found["line"]


def test_a_term_without_any_gradient_is_named(taught, monkeypatch):
    original = KD.forward
    monkeypatch.setattr(KD, "forward", lambda self, inputs: original(self, inputs).detach())
    assert taught()["gradient_share"]["value"] == 0


def test_parameters_that_a_term_does_not_use_are_named(taught, monkeypatch):
    monkeypatch.setattr(KD, "setup", lambda self, context: setattr(self, "stray", torch.nn.Linear(2, 2)))
    found = taught()["no_gradient"]
    assert (found["term"], found["epoch"], found["step"], found["value"]) == ("kd", 1, 1, "stray.weight")
    assert "leaves 2 of its 2 parameters without a gradient, stray.weight for instance" in found["line"]


def test_a_term_that_is_switched_off_is_no_alarm(taught, workplace):
    workplace.edit("kd: {weight: 0.5", "kd: {weight: 0")
    assert taught() == {}


@pytest.mark.parametrize("name", ["layer2.0.bn1.running_mean", "fc.bias"])
def test_a_teacher_that_moves_is_noticed_at_the_end_of_the_epoch(taught, monkeypatch, name):
    calls, original = count(), Teacher.__call__

    def call(self, images):
        if next(calls) == 6:
            self.extractor.network.state_dict()[name][0] += 1e-6
        return original(self, images)

    monkeypatch.setattr(Teacher, "__call__", call)
    found = taught()["teacher_moved"]
    assert (found["epoch"], found["value"]) == (2, name)


def test_a_teacher_that_guesses_is_noticed(taught, monkeypatch):
    original = Teacher.__call__

    def call(self, images):
        outputs = original(self, images)
        return outputs._replace(logits_BC=outputs.logits_BC.roll(1, dims=1))

    monkeypatch.setattr(Teacher, "__call__", call)
    found = taught()["teacher_at_chance"]
    assert found["epoch"] == 4  # the first with a hundred images
    assert "of 128 training images" in found["line"]


def test_a_student_whose_channels_are_dead_is_noticed(taught, monkeypatch):
    original = build.begin_network

    def begin(job):
        network = original(job)
        mask = (torch.arange(64) >= 40).float()
        network.fc.register_forward_pre_hook(lambda module, args: (args[0] * mask,))
        return network

    monkeypatch.setattr(build, "begin_network", begin)
    found = taught("small")["dead_channels"]
    assert found["value"] == 40 / 64
    assert "40 of the 64 channels" in found["line"]


def test_a_long_wait_for_data_is_kept(taught, monkeypatch):
    monkeypatch.setattr(alarms, "LONG_WAIT_SECONDS", 0.0)
    assert taught("small")["data_wait"]["epoch"] == 1
    assert loader.WAIT_SECONDS == 60.0  # as long as until the wait itself is said


def test_a_stopped_run_says_an_alarm_once(taught, workplace, monkeypatch, stop_after):
    monkeypatch.setattr(KD, "forward", lambda self, inputs: inputs.student.logits_BC.sum() * 0)
    stop_after(21)
    with pytest.raises(Stopped):
        workplace.make("taught")
    with pytest.MonkeyPatch.context() as longer:
        longer.setattr(alarms, "STEPS_AT_ONE_VALUE", 2)
        folder = workplace.make("taught")
    found = json.loads((folder / "run.json").read_text())["alarms"]
    assert [(alarm["alarm"], alarm["epoch"]) for alarm in found if alarm["alarm"] == "constant_term"] == [
        ("constant_term", 5)
    ]


TEACHER = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, %s: %s}}"
OPTIONS = {
    "cc": "{weight: 0.02}",
    "mlkd": "{weight: 0.1}",
    "rkd": "{weight: 0.1}",
    "srrl": "{weight: 0.1}",
    "crd": "{negatives: 9}",
    "mgd": "{loss_factor: 100, update_images: 36}",
    "overhaul": "{loss_factor: 100}",
}


def line(name, model="cifar_resnet8"):
    text = TEACHER % (name, OPTIONS.get(name, "{}")) if name != "ce" else TEACHER.replace(", %s: %s", "")
    text = text if TERMS[name].needs.teacher else text.replace("teacher: big, ", "")
    return text.replace("cifar_resnet8", model)


@pytest.mark.parametrize("name", ["kd", "rkd", "crd", "mgd", "bake"])
def test_alarms_change_no_bit(taught, workplace, monkeypatch, name):
    """Not where gradients are looked at, nor with random dropout and in half precision."""
    model = (
        "mobilenetv3_small_050, model_args: {drop_rate: 0.2}, precision: bf16-mixed"
        if name == "kd"
        else "cifar_resnet8"
    )
    workplace.edit("  tables:", f"    watched: {line(name, model)}\n  tables:")
    looked = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given, **more: looked.append(1) or original(*given, **more))
    watched = workplace.make("watched")
    assert looked == [1, 1]
    written = [(watched / file).read_bytes() for file in ("weights.safetensors", "history.csv")]
    for method in ("begin_step", "heard", "look", "close_epoch"):
        monkeypatch.setattr(Alarms, method, lambda self, *given: None)
    plain = workplace.make("watched", results="plain")
    assert written == [(plain / file).read_bytes() for file in ("weights.safetensors", "history.csv")]
    assert all(value.isfinite().all() for value in load_file(watched / "weights.safetensors").values())


MODELS = ("cifar_resnet8", "cifar_resnet14")


@pytest.mark.sweep
def test_healthy_runs_of_every_term_raise_no_alarm(workplace, one_thread):
    workplace.edit_recipe("epochs: 6")
    runs = {f"run-{name}-{model}": line(name, model) for name, model in product(TERMS, MODELS)}
    workplace.edit("  tables:", "".join(f"    {run}: {keys}\n" for run, keys in runs.items()) + "  tables:")
    workplace.make("big")
    found = {run: json.loads((workplace.make(run) / "run.json").read_text())["alarms"] for run in runs}
    assert {run: alarms for run, alarms in found.items() if alarms} == {}
