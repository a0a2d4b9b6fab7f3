"""Whole runs, in process, on real files."""

import csv
import json
import re
import signal
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from threading import Timer

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written

from distillery.cluster.run_lock import RunLock
from distillery.cluster.signals import Stopped
from distillery.data.prepare import prepare_dataset
from distillery.distill import assembly
from distillery.distill.losses.cross_entropy import CrossEntropy
from distillery.distill.losses.mgd import MGD
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.experiment.loading import load_dataset
from distillery.training import build
from distillery.training.checkpoint import CheckpointFolder
from distillery.training.job import Job, Machine
from distillery.training.run import make_run


def test_a_run_leaves_whole_results(workplace):
    folder = workplace.make()
    record = json.loads((folder / "run.json").read_text())
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert set(rows[0]) >= {"lr", "train_loss", "train_ce", "train_top1", "val_loss", "val_top1", "val_top5"}
    assert record["epoch"] == 2
    assert record["selection"] == "last"
    assert record["effective"]["batch"] == 8
    assert record["effective"]["optimizer"][0]["momentum"] == 0.9
    assert record["effective"]["steps_per_epoch"] == 36 // 8
    assert record["sessions"][0]["provenance"]["packages"]["torch"] == version("torch")
    assert list((folder / "tensorboard").glob("events.*"))
    assert not list((workplace.results / "work").glob("*"))


def test_a_run_may_have_a_long_name(workplace):
    name = "small" * 50
    workplace.edit("small:", f"{name}:")
    workplace.edit("rows: [big, small,", f"rows: [big, {name},")
    assert (workplace.make(name) / "run.json").exists()


@pytest.mark.slow
def test_any_number_of_loader_workers_gives_the_same_bytes(workplace):
    alone = written(workplace.make())
    for workers in (0, 1, 3):
        assert written(workplace.make(results=f"by-{workers}", loader="torch", workers=workers)) == alone


@pytest.mark.slow
def test_seeds_differ_and_repeat(workplace):
    first = written(workplace.make())
    assert written(workplace.make(results="again")) == first
    assert written(workplace.make(seed=1))["weights.safetensors"] != first["weights.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "ema: {decay: 0.9}", "selection: best", "drop_last: false"])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(workplace, stop_after, monkeypatch, extra):
    workplace.edit_recipe(extra)
    straight = written(workplace.make(results="straight"))
    for steps in (1, 3, 4, 5, 7, 8):
        results = f"stopped{steps}"
        stop_after(steps)
        with pytest.raises(Stopped, match="SIGTERM"):
            workplace.make(results=results)
        folder = workplace.job(results=results).folder
        assert not (folder / "weights.safetensors").exists()
        assert not (folder / "run.json").exists()
        monkeypatch.undo()
        assert written(workplace.make(results=results)) == straight
        sessions = json.loads((folder / "run.json").read_text())["sessions"]
        assert len(sessions) == 2
        assert sessions[1]["from_epoch"] * (4 + (extra == "drop_last: false")) + sessions[1]["from_step"] == steps


@pytest.mark.slow
def test_a_run_that_is_stopped_before_an_epochs_first_step_ends_with_the_same_bytes(workplace, monkeypatch):
    """It has matched the epoch's channels by then, and matches them again."""
    objective = "{ce: {}, mgd: {loss_factor: 100, update_every: 1, update_images: 36}}"
    workplace.edit(
        "  tables:",
        f"    matched: {{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {objective}}}\n  tables:",
    )
    workplace.make("big")
    straight = written(workplace.make("matched", results="straight"))
    original = MGD.begin_epoch

    def begin_epoch(self, epoch, batches):
        original(self, epoch, batches)
        if epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MGD, "begin_epoch", begin_epoch)
    with pytest.raises(Stopped):
        workplace.make("matched")
    monkeypatch.undo()
    folder = workplace.make("matched")
    assert written(folder) == straight
    sessions = json.loads((folder / "run.json").read_text())["sessions"]
    assert [(session["from_epoch"], session["from_step"]) for session in sessions] == [(0, 0), (1, 0)]


@pytest.mark.slow
def test_a_frequent_checkpoint_changes_nothing(workplace):
    assert written(workplace.make(checkpoint_seconds=0.0)) == written(workplace.make(results="plain"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_said_and_left(workplace, stop_after, monkeypatch, capsys):
    straight = written(workplace.make(results="straight"))
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make()
    monkeypatch.undo()
    (checkpoint,) = (workplace.results / "work").rglob("checkpoint.pt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert written(workplace.make()) == straight
    assert "damaged" in capsys.readouterr().out


def test_another_recipe_never_continues_from_an_old_checkpoint(workplace, stop_after, monkeypatch):
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make()
    monkeypatch.undo()
    workplace.edit_recipe("clip_norm: 0.5")
    folder = workplace.make()
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 1


@pytest.mark.slow
def test_a_student_learns_from_its_frozen_teacher(workplace):
    teacher = workplace.make("big")
    before = written(teacher)
    folder = workplace.make("taught")
    assert written(teacher) == before
    assert set(load_file(folder / "weights.safetensors")) == set(load_file(workplace.make() / "weights.safetensors"))
    rows = list(csv.DictReader((folder / "history.csv").open()))
    for row in rows:
        mixed = 0.5 * float(row["train_ce"]) + 0.5 * float(row["train_kd"])
        assert float(row["train_loss"]) == pytest.approx(mixed, rel=1e-6)


@pytest.mark.slow
def test_a_teacher_that_is_not_what_was_measured_stops_the_run(workplace):
    teacher = workplace.make("big")
    (teacher / "metrics.json").write_text(json.dumps({"top1": 101.0, "weights_sha256": "of other weights"}))
    workplace.make("taught")
    weights = sha256((teacher / "weights.safetensors").read_bytes()).hexdigest()
    (teacher / "metrics.json").write_text(json.dumps({"top1": 101.0, "weights_sha256": weights}))
    with pytest.raises(UserError, match=r"this teacher scores .* but 101\.00 % stands in"):
        workplace.make("taught")
    (teacher / "metrics.json").write_text('{"top1": 10')
    with pytest.raises(UserError, match=r"not valid JSON; make it again with: distillery evaluate .*tiny\.yaml big"):
        workplace.make("taught")


def test_a_missing_teacher_is_named_with_the_command_that_makes_it(workplace):
    with pytest.raises(UserError, match=r"big/seed0/run\.json: missing; .*distillery train .*tiny\.yaml big"):
        workplace.make("taught")


def test_divergence_is_said_in_one_line(workplace):
    workplace.edit_recipe("optimizer: {name: sgd, lr: 1.0e+30}")
    with pytest.raises(UserError, match=r"small/seed0: the loss is .* in epoch 1; lower optimizer\.lr") as said:
        workplace.make()
    assert re.search(r"\(step \d: ce (nan|inf); sample ids (\d+, ){7}\d+\)", str(said.value))


def test_the_curves_of_a_run_that_diverged_are_kept_beside_its_logs(workplace, monkeypatch):
    """Snakemake removes those in the results, for its job has failed."""
    original = CrossEntropy.forward
    monkeypatch.setattr(
        CrossEntropy, "forward", lambda self, inputs: original(self, inputs) * (1.0 if inputs.epoch < 1 else torch.nan)
    )
    with pytest.raises(UserError, match="; its curves are kept in ") as said:
        workplace.make()
    kept = Path(str(said.value).rpartition(" kept in ")[2])
    assert kept == workplace.folder / "logs/tiny/small/seed0/diverged"
    assert [row["epoch"] for row in csv.DictReader((kept / "history.csv").open())] == ["1"]
    assert list((kept / "tensorboard").glob("events.*"))


def test_a_weight_that_is_nan_is_never_saved(workplace, monkeypatch):
    """The loss of the step that broke it was finite."""
    original, steps = torch.optim.SGD.step, []

    def step(self, *arguments, **options):
        steps.append(original(self, *arguments, **options))
        if len(steps) == 2:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("nan")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(UserError, match=r"weight student\.conv1\.weight is NaN or infinite after step 2 in epoch 1"):
        workplace.make(checkpoint_seconds=0.0)
    (path,) = (workplace.results / "work").rglob("checkpoint.pt")
    state, _ = CheckpointFolder(path.parent).load()
    assert state["train_state"]["step"] == 1


def test_a_gradient_of_nan_ends_a_run_that_clips_in_one_line(workplace, monkeypatch):
    original = build.begin_network

    def begin(job):
        network = original(job)
        network.conv1.weight.register_hook(lambda gradient: gradient * torch.nan)
        return network

    monkeypatch.setattr(build, "begin_network", begin)
    workplace.edit_recipe("clip_norm: 0.5")
    with pytest.raises(UserError, match="the loss is NaN or infinite"):
        workplace.make()


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        "precision: bf16-mixed",
        "channels_last: true",
        "optimizer: {name: adamw, lr: 0.001}",
        "schedule: {name: step, every: 1, warmup: {name: stepwise, epochs: 1}}",
        "schedule: {name: cosine, cooldown: 1, warmup: {name: absolute, epochs: 1, lr: 0.001}}",
    ],
)
def test_every_kind_of_recipe_trains(workplace, extra):
    workplace.edit_recipe(extra)
    rows = list(csv.DictReader((workplace.make() / "history.csv").open()))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) * 1.5
    assert len(rows) == (3 if "cooldown" in extra else 2)


def test_signals_are_left_as_they_were(workplace, stop_after):
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    stop_after(2)
    with pytest.raises(Stopped):
        workplace.make()
    workplace.make(seed=1)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.fixture
def predecessor(workplace, monkeypatch):
    """Another process that works on the run until this one has begun to wait for it."""

    def arrange(before_it_ends):
        monkeypatch.setenv("SLURM_JOB_ID", "4711")  # only jobs wait
        other = RunLock(workplace.job().lock)
        other.acquire()

        def end():
            before_it_ends()
            other.release()

        Timer(0.3, end).start()

    return arrange


@pytest.mark.slow
def test_what_was_finished_while_waiting_is_not_trained_again(workplace, predecessor, capsys):
    folder = workplace.make()
    before = {name: (folder / name).stat().st_mtime_ns for name in (*written(folder), "run.json")}
    predecessor(lambda: None)
    workplace.make()
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert "finished by another process while this one waited" in capsys.readouterr().out
    # Without waiting it is trained again.
    workplace.make()
    assert (folder / "run.json").stat().st_mtime_ns > before["run.json"]


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["weights.safetensors", "history.csv", "run.json", "tensorboard"])
def test_what_was_left_unfinished_is_trained_after_waiting(workplace, predecessor, missing):
    folder = workplace.make()
    whole = written(folder)
    predecessor(lambda: (folder / missing).rename(workplace.folder / "away"))
    workplace.make()
    assert written(folder) == whole
    assert (folder / missing).exists()


@pytest.mark.slow
@pytest.mark.parametrize("key", ["digest", "manifest_digest"])
def test_what_was_finished_from_another_recipe_or_other_images_is_trained_after_waiting(workplace, predecessor, key):
    folder = workplace.make()
    right = json.loads((folder / "run.json").read_text())[key]
    other = json.loads((folder / "run.json").read_text()) | {key: "another"}
    predecessor(lambda: (folder / "run.json").write_text(json.dumps(other)))
    workplace.make()
    assert json.loads((folder / "run.json").read_text())[key] == right


@pytest.mark.slow
def test_the_best_epoch_is_kept(workplace):
    workplace.edit_recipe("selection: best\nepochs: 6\noptimizer: {name: sgd, lr: 0.3}")
    folder = workplace.make()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    best = max(rows, key=lambda row: float(row["val_top1"]))
    assert json.loads((folder / "run.json").read_text())["epoch"] == int(best["epoch"])


def test_held_out_images_choose_the_epoch_and_others_are_reported(workplace):
    workplace.edit_recipe("selection: best\nepochs: 4\noptimizer: {name: sgd, lr: 0.3}")
    lines = workplace.folder / "config" / "datasets.yaml"
    lines.write_text(lines.read_text().replace("}", ", holdout: 0.25}"))
    prepare_dataset("tiny", load_dataset(lines, "tiny"), workplace.results / "datasets" / "tiny", workers=1)
    folder = workplace.make()
    rows = list(csv.DictReader((folder / "history.csv").open()))
    # 3 of 12 images of each of 3 classes are held out.
    for row in rows:
        assert (float(row["val_top1"]) * 9 / 100) == pytest.approx(round(float(row["val_top1"]) * 9 / 100))
    best = max(rows, key=lambda row: float(row["val_top1"]))
    record = json.loads((folder / "run.json").read_text())
    assert (record["epoch"], record["selection_split"]) == (int(best["epoch"]), "holdout")
    metrics = evaluate_run(load_experiment(workplace.experiment), "small", 0, workplace.results)
    assert (metrics["split"], metrics["images"], metrics["selection_split"]) == ("val", 12, "holdout")


def test_a_batch_larger_than_the_data_is_refused(workplace):
    workplace.edit_recipe("batch: 64")
    with pytest.raises(UserError, match=r"tiny\.runs\.small\.batch: 64 is more than the 36 training images"):
        workplace.make()


def test_the_bar_is_one_line_an_epoch_where_there_is_no_terminal(workplace, capsys):
    workplace.make()
    lines = [line for line in capsys.readouterr().err.splitlines() if "epoch" in line]
    assert len(lines) == 2
    for word in ("small/seed0", "epoch 2/2", "loss", "top-1", "val", "img/s", "data wait", "ETA"):
        assert word in lines[1]


def test_half_precision_that_a_cpu_does_not_have_is_said_and_recorded(workplace, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    workplace.edit_recipe("precision: 16-mixed")
    record = json.loads((workplace.make() / "run.json").read_text())
    assert record["sessions"][0]["precision"] == "bf16-mixed"
    assert "precision: 16-mixed is not to be had on a cpu; training in bf16-mixed" in capsys.readouterr().out


STILL = "recipe: tiny, epochs: 1, optimizer: {name: sgd, lr: 1.0e-30}"


@pytest.mark.slow
def test_training_starts_from_the_first_seed_of_another_run(workplace):
    workplace.edit("  tables:", f"    tuned: {{model: cifar_resnet8, {STILL}, weights: 'run:small'}}\n  tables:")
    with pytest.raises(UserError, match=r"small/seed0/run\.json: missing; first make it with: distillery train "):
        workplace.make("tuned", seed=1)
    origin = load_file(workplace.make() / "weights.safetensors")
    tuned = load_file(workplace.make("tuned", seed=1) / "weights.safetensors")
    learned = [name for name in origin if "running" not in name and "num_batches" not in name]
    assert all((origin[name] == tuned[name]).all() for name in learned)
    assert any((origin[name] != tuned[name]).any() for name in origin)  # the batch norms' running statistics


@pytest.mark.slow
def test_training_may_begin_with_a_new_last_layer(workplace):
    tuned = f"{{model: cifar_resnet8, {STILL}, weights: 'run:small', new_classifier: true}}"
    workplace.edit("  tables:", f"    tuned: {tuned}\n    fresh: {{model: cifar_resnet8, {STILL}}}\n  tables:")
    origin = load_file(workplace.make() / "weights.safetensors")
    fresh = load_file(workplace.make("fresh") / "weights.safetensors")
    tuned = load_file(workplace.make("tuned") / "weights.safetensors")
    assert (tuned["conv1.weight"] == origin["conv1.weight"]).all()
    assert (tuned["fc.weight"] == fresh["fc.weight"]).all()


@pytest.mark.slow
def test_a_recipe_may_say_how_the_last_layer_begins(workplace):
    line = f"{{model: cifar_resnet8, {STILL}}}"
    wide = line.replace("}}", "}, classifier_std: 0.5}")
    tuned = wide.replace(", classifier", ", weights: 'run:small', new_classifier: true, classifier")
    workplace.edit("  tables:", f"    fresh: {line}\n    wide: {wide}\n    tuned: {tuned}\n  tables:")
    origin, fresh, wide, tuned = (
        load_file(workplace.make(run) / "weights.safetensors") for run in ("small", "fresh", "wide", "tuned")
    )
    assert wide["fc.weight"].std() == pytest.approx(0.5, rel=0.15)
    assert wide["fc.bias"].abs().max() < 1e-20  # zero but for one step at the smallest rate
    assert fresh["fc.weight"].std() < 0.1
    assert (wide["conv1.weight"] == fresh["conv1.weight"]).all()
    assert (tuned["fc.weight"] == wide["fc.weight"]).all()
    assert (tuned["conv1.weight"] == origin["conv1.weight"]).all()


def test_a_run_can_be_imported_from_another_experiment(workplace):
    text = workplace.experiment.read_text().replace("tiny:\n  dataset", "other:\n  dataset")
    workplace.experiment.with_name("other.yaml").write_text(text)
    other = load_experiment(workplace.experiment.with_name("other.yaml"))
    make_run(Job(other, "small", 0, workplace.results, Machine(workers=0)))
    workplace.edit("  tables:", "    taken: {model: cifar_resnet8, weights: 'run:other/small'}\n  tables:")
    taken = workplace.make("taken")
    assert json.loads((taken / "run.json").read_text())["preprocess"]["size"] == 8
    original = workplace.results / "other" / "small" / "seed0" / "weights.safetensors"
    assert (taken / "weights.safetensors").read_bytes() == original.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("source", ["teacher", "pretrained"])
def test_margins_are_those_of_the_teacher_or_of_the_weights_it_began_with(workplace, monkeypatch, source):
    workplace.edit(
        "  tables:",
        "    tuned: {model: cifar_resnet8, recipe: tiny, weights: 'run:small'}\n"
        "    matched: {model: cifar_resnet8, recipe: tiny, teacher: tuned,"
        f" margin_source: {source}, objective: {{ce: {{}}, mgd: {{}}}}}}\n  tables:",
    )
    found = []
    original = assembly.build_objective
    monkeypatch.setattr(
        assembly,
        "build_objective",
        lambda objective, context, *rest: found.append(context) or original(objective, context, *rest),
    )
    folders = {"pretrained": workplace.make(), "teacher": workplace.make("tuned")}
    workplace.make("matched")
    state = load_file(folders[source] / "weights.safetensors")
    for stage, pair in enumerate(found[-1].stages, start=1):
        norm = f"layer{stage}.0.bn2"
        assert torch.equal(pair.teacher_margin, bn_margin(state[f"{norm}.weight"], state[f"{norm}.bias"]))


@pytest.mark.parametrize(
    ("model", "recipe", "line"),
    [
        (
            "resnet18",
            "batch: 35\ndrop_last: false",
            r"'resnet18' cannot be trained on a batch of 1 image of 8 x 8 pixels",
        ),
        ("resnet18", "batch: 1", r"'resnet18' cannot be trained on a batch of 1 image .*; raise `batch` or "),
        (
            "torchvision:googlenet, model_args: {aux_logits: true}",
            "preprocess: {size: 64}",
            r"gives GoogLeNetOutputs in",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_before_the_first_step(workplace, model, recipe, line):
    workplace.edit("small:  {model: cifar_resnet8", f"small:  {{model: {model}")
    workplace.edit_recipe(recipe)
    with pytest.raises(UserError, match=line) as said:
        workplace.make()
    assert "\n" not in str(said.value)
