"""The machine's choices: said strictly, on record, in no digest, and each of them trains."""

import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Workplace

from distillery.cli import main
from distillery.cluster.signals import Stopped
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.training import devices
from distillery.training.devices import settle
from distillery.training.run import make_run
from distillery.training.speed import Speed, chosen_speed

DEFAULTS_ON_CPUS = {
    "precision": "recipe",
    "channels_last": "off",
    "fused": "off",
    "tf32": "off",
    "teacher": "plain",
    "compile": "off",
}
can_compile = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler on CPUs"
)


def speed_of(folder):
    return json.loads((folder / "run.json").read_text())["sessions"][-1]["speed"]


def weights_of(folder):
    state = load_file(folder / "weights.safetensors")
    return torch.cat([state[name].flatten() for name in sorted(state)])


def bytes_of(folder):
    return {name: (folder / name).read_bytes() for name in ("weights.safetensors", "history.csv")}


class Taught(Workplace):
    """With a teacher, and a student that learns from it by a recipe of its own."""

    def recipe(self, text):
        """Append keys to the student's recipe, or replace those it has."""
        path = self.folder / "config" / "recipes" / "tiny.yaml"
        teachers = path.read_text()
        self.edit_recipe(text)
        path.rename(path.with_name("own.yaml"))
        path.write_text(teachers)


@pytest.fixture
def taught(workplace):
    place = Taught(workplace.folder)
    place.edit(
        "  tables:", "    kd: {model: cifar_resnet8, recipe: own, teacher: big, objective: {ce: {}, kd: {}}}\n  tables:"
    )
    place.recipe("epochs: 2")
    place.make("big")
    return place


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("fuse=on", "--speed: no choice 'fuse'; did you mean 'fused'? valid: channels_last, compile, fused,"),
        ("fused=yes", "--speed: 'fused=yes' is not valid; fused= takes auto, on, off"),
        ("fused", "--speed: 'fused' is not valid; fused= takes auto, on, off"),
        ("compile=teacher, compile=off", "--speed: compile is given twice, as teacher and as off"),
    ],
)
def test_a_wrong_choice_is_one_line(workplace, capsys, given, said):
    with pytest.raises(SystemExit) as end:
        main(["train", str(workplace.experiment), "small", "--results", str(workplace.results), "--speed", given])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"distillery: {said}")


def test_the_environment_chooses_where_no_option_does(monkeypatch):
    assert chosen_speed("") == Speed()
    monkeypatch.setenv("DISTILLERY_SPEED", "compile=both, fused=off,")
    assert chosen_speed("") == Speed(compile="both", fused="off")
    assert chosen_speed("tf32=on") == Speed(tf32="on")
    monkeypatch.setenv("DISTILLERY_SPEED", "compile=all")
    with pytest.raises(UserError, match="DISTILLERY_SPEED: 'compile=all' is not valid"):
        chosen_speed("")


@pytest.mark.slow
def test_choices_are_on_record_and_in_no_digest(taught):
    chosen = Speed(channels_last="on", fused="on", teacher="folded")
    made = taught.make("kd", speed=chosen)
    assert speed_of(made) == DEFAULTS_ON_CPUS | {"channels_last": "on", "fused": "on", "teacher": "folded"}
    plain = taught.make("kd", results="plain")
    assert speed_of(plain) == DEFAULTS_ON_CPUS
    records = [json.loads((folder / "run.json").read_text()) for folder in (made, plain)]
    assert records[0]["digest"] == records[1]["digest"]
    assert records[0]["spec"] == records[1]["spec"]
    with pytest.raises(SystemExit):
        main(["check", str(taught.experiment)])
    assert load_experiment(taught.experiment).spec("kd", 0).digest == records[0]["digest"]


def test_by_default_a_cpu_computes_what_the_recipe_says(workplace):
    workplace.edit_recipe("channels_last: true\nprecision: bf16-mixed")
    job, recipe = settle(workplace.job())
    assert recipe == job.spec.recipe
    assert vars(job.machine.speed) == DEFAULTS_ON_CPUS | {"channels_last": "on"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choice", "keys"),
    [
        ({"channels_last": "on"}, ""),
        ({"channels_last": "off"}, "channels_last: true"),
        ({"fused": "on"}, ""),
        ({"fused": "on"}, "optimizer: {name: adamw, lr: 0.01, weight_decay: 0.1}"),
        ({"fused": "on"}, "optimizer: {name: adam, lr: 0.01, weight_decay: 0.1}"),
        ({"teacher": "folded"}, ""),
    ],
)
def test_each_choice_trains_to_the_same_weights_but_for_rounding(taught, choice, keys):
    taught.recipe(f"epochs: 1\n{keys}")
    plain = taught.make("kd", results="plain")
    made = taught.make("kd", speed=Speed(**choice))
    assert speed_of(made) == speed_of(plain) | choice
    assert torch.allclose(weights_of(made), weights_of(plain), rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_teachers_weights_in_half_precision_teach_the_same_bytes(taught):
    taught.recipe("epochs: 1\nprecision: bf16-mixed")
    plain = taught.make("kd", results="plain")
    made = taught.make("kd", speed=Speed(teacher="half"))
    assert (speed_of(plain)["teacher"], speed_of(made)["teacher"]) == ("plain", "half")
    assert bytes_of(made) == bytes_of(plain)


# What the compiler makes of them takes half a minute.
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=[can_compile, pytest.mark.sweep])])
def test_compiled_networks_train_to_the_same_weights_but_for_rounding(taught, monkeypatch, backend):
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda network: original(network, backend=backend))
    taught.recipe("epochs: 1")
    plain = taught.make("kd", results="plain")
    made = taught.make("kd", speed=Speed(compile="both", teacher="folded"))
    assert speed_of(made)["compile"] == "both"
    assert torch.allclose(weights_of(made), weights_of(plain), rtol=1e-2, atol=1e-3)
    assert sorted(load_file(made / "weights.safetensors")) == sorted(load_file(plain / "weights.safetensors"))


@pytest.mark.slow
def test_networks_whose_features_are_asked_for_are_not_compiled(taught):
    taught.edit("objective: {ce: {}, kd: {}}", "objective: {ce: {}, rkd: {}}")
    made = taught.make("kd", speed=Speed(compile="both", teacher="folded"))
    assert speed_of(made) == DEFAULTS_ON_CPUS


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd, lr: 0.05, momentum: 0.9", "adamw, lr: 0.01"])
def test_stopped_and_continued_with_the_same_choices_ends_with_the_same_bytes(
    taught, optimizer, stop_after, monkeypatch
):
    taught.recipe(f"optimizer: {{name: {optimizer}, weight_decay: 1.0e-4}}")
    choice = Speed(fused="on", channels_last="on", teacher="folded")
    straight = bytes_of(taught.make("kd", results="straight", speed=choice))
    stop_after(5)
    with pytest.raises(Stopped, match="SIGTERM"):
        taught.make("kd", speed=choice)
    monkeypatch.undo()
    assert bytes_of(taught.make("kd", speed=choice)) == straight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "choices"),
    [
        ("sgd, lr: 0.05, momentum: 0.9", [{"fused": "on"}, {"fused": "off"}]),
        ("sgd, lr: 0.05, momentum: 0.9", [{"fused": "off"}, {"fused": "on"}]),
        ("adamw, lr: 0.01", [{"fused": "on", "channels_last": "on"}, {"fused": "off", "channels_last": "off"}]),
        ("adamw, lr: 0.01", [{"fused": "off", "channels_last": "off"}, {"fused": "on", "channels_last": "on"}]),
    ],
)
def test_a_run_may_be_continued_with_another_choice(taught, optimizer, choices, stop_after, monkeypatch):
    taught.recipe(f"optimizer: {{name: {optimizer}, weight_decay: 1.0e-4}}")
    plain = taught.make("kd", results="plain")
    stop_after(5)
    with pytest.raises(Stopped, match="SIGTERM"):
        taught.make("kd", speed=Speed(**choices[0]))
    monkeypatch.undo()
    folder = taught.make("kd", speed=Speed(**choices[1]))
    record = json.loads((folder / "run.json").read_text())
    assert [session["speed"] for session in record["sessions"]] == [DEFAULTS_ON_CPUS | choice for choice in choices]
    assert record["effective"]["optimizer"][0]["fused"] == (True if choices[1]["fused"] == "on" else None)
    assert torch.allclose(weights_of(folder), weights_of(plain), rtol=1e-2, atol=2e-3)


def gpu(monkeypatch, bfloat16=True):
    """As a machine with a GPU decides."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        ("", {"channels_last": "off", "teacher": "plain"}),
        ("channels_last: true", {"channels_last": "on", "teacher": "plain"}),
        ("precision: bf16-mixed", {"channels_last": "off", "teacher": "plain"}),
        ("precision: 16-mixed\nclip_norm: 1", {"channels_last": "off", "teacher": "plain"}),
    ],
)
def test_what_a_gpu_takes_by_default(workplace, monkeypatch, keys, taken):
    workplace.edit_recipe(keys)
    gpu(monkeypatch)
    job, recipe = settle(workplace.job())
    expected = {"precision": "native", "fused": "off", "tf32": "convolutions", "compile": "off"} | taken
    assert vars(job.machine.speed) == expected
    assert recipe.precision == job.spec.recipe.precision
    assert recipe.channels_last == (taken["channels_last"] == "on")


@pytest.mark.parametrize(
    ("precision", "choice", "cuda", "bfloat16", "taken"),
    [
        ("bf16-mixed", "auto", True, True, "bf16-mixed"),
        ("bf16-mixed", "auto", True, False, "32-true"),
        ("16-mixed", "auto", True, False, "16-mixed"),
        ("bf16-mixed", "recipe", True, False, "bf16-mixed"),
        ("bf16-mixed", "32-true", True, True, "32-true"),
        ("bf16-mixed", "auto", False, False, "bf16-mixed"),
        ("bf16-mixed", "native", False, False, "32-true"),
        ("16-mixed", "native", False, False, "32-true"),
        ("16-mixed", "native", False, True, "16-mixed"),
        ("32-true", "native", False, False, "32-true"),
    ],
)
def test_half_precision_may_be_left_to_devices_that_have_it(
    workplace, monkeypatch, precision, choice, cuda, bfloat16, taken
):
    workplace.edit_recipe(f"precision: {precision}")
    if cuda:
        gpu(monkeypatch, bfloat16)
    monkeypatch.setattr(devices, "_has_bfloat16", lambda cuda: bfloat16)
    _, recipe = settle(workplace.job(speed=Speed(precision=choice)))
    assert recipe.precision == taken


def test_a_fused_optimizer_that_cannot_clip_is_refused(workplace, monkeypatch):
    workplace.edit_recipe("precision: 16-mixed\nclip_norm: 1")
    gpu(monkeypatch)
    with pytest.raises(UserError, match=re.escape("runs.small: fused=on does not go with precision 16-mixed and clip")):
        make_run(workplace.job(speed=Speed(fused="on")))


@pytest.mark.slow
def test_the_choices_import_no_compiler_unless_one_compiles():
    import subprocess

    script = (
        "import sys; from distillery.imports import import_fabric; import_fabric(); import distillery.training.build; "
        "import distillery.training.speed; assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
