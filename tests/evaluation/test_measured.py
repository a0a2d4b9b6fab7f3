"""What a training measures of its own network is what a separate evaluation finds, to the byte, or is not believed."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import Workplace
from tests.training.test_processes import make_in_processes

from distillery.evaluation import evaluate, measured
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.measured import FILE, take_measured
from distillery.experiment import load_experiment
from distillery.models import create_model
from distillery.results import write_sealed
from distillery.training import run as training_run

KINDS = {
    "a student alone": "{model: cifar_resnet8, recipe: tiny}",
    "a student of a teacher": "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, kd: {}}}",
    "averaged weights": "{model: cifar_resnet8, recipe: tiny, ema: {decay: 0.5}, selection: best}",
    "a head that is deployed": "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {simkd: {}}}",
    "several teachers": "{model: cifar_resnet8, recipe: tiny, teacher: [big, small], objective: {ce: {}, kd: {}}}",
    "weights of other classes": "{model: cifar_resnet14, recipe: tiny, weights: FOLDER/five.safetensors, "
    "classes: FOLDER/five.txt, optimizer: {name: sgd, lr: 1.0e-6}}",
    "images of another size": "{model: cifar_resnet8, recipe: tiny, preprocess: {size: 12}}",
}


def add(workplace, line):
    workplace.edit("  tables:", f"    one: {line.replace('FOLDER', str(workplace.folder))}\n  tables:")


def taken(place, run="one"):
    return take_measured(load_experiment(place.experiment), run, 0, place.results)


def one(place, name, run="one"):
    return place.results / "tiny" / run / "seed0" / name


@pytest.fixture(scope="module")
def made_once(prepared_tiny, tmp_path_factory):
    """A teacher and its student, which was measured by its training."""
    place = Workplace(tmp_path_factory.mktemp("measured") / "work")
    shutil.copytree(prepared_tiny, place.folder)
    add(place, KINDS["a student of a teacher"])
    place.make("big")
    place.make("one", measure=True)
    return place


@pytest.fixture
def made(made_once, tmp_path):
    """A copy of them, to spoil."""
    shutil.copytree(made_once.folder, tmp_path / "work")
    return Workplace(tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_an_evaluation_writes_to_the_byte(workplace, kind):
    add(workplace, KINDS[kind])
    save_file(create_model("cifar_resnet14", 5).state_dict(), workplace.folder / "five.safetensors")
    (workplace.folder / "five.txt").write_text("bee\nzebra\ngnu\ncow\nape\n")
    for teacher in ("big", "small"):
        if teacher in KINDS[kind]:
            workplace.make(teacher)
    workplace.make("one", measure=True)
    metrics = taken(workplace)
    assert metrics is not None
    of_training = one(workplace, "metrics.json").read_bytes()
    assert not one(workplace, FILE).exists()
    one(workplace, "metrics.json").unlink()
    assert evaluate_run(load_experiment(workplace.experiment), "one", 0, workplace.results) == metrics
    assert one(workplace, "metrics.json").read_bytes() == of_training


def test_a_teachers_training_keeps_its_classes_for_its_students(workplace):
    workplace.make("big", measure=True)
    kept = one(workplace, "predictions.json", "big").read_bytes()
    one(workplace, "predictions.json", "big").unlink()
    evaluate_run(load_experiment(workplace.experiment), "big", 0, workplace.results)
    assert one(workplace, "predictions.json", "big").read_bytes() == kept


def test_only_trainings_that_are_asked_measure(workplace):
    workplace.make("small")
    assert not one(workplace, FILE, "small").exists()


@pytest.mark.slow
def test_several_processes_leave_it_to_the_evaluation(workplace):
    job = workplace.job("small", measure=True)
    make_in_processes(job, 2)
    assert (job.folder / "run.json").is_file()
    assert not (job.folder / FILE).exists()


# --- what is not believed --------------------------------------------------------------------------------------------


def edit(path):
    path.write_text(path.read_text().replace('"top1": ', '"top1": 1'))


def unseal(path):
    kept = json.loads(path.read_text())
    del kept["seal"]
    kept["metrics"]["top1"] = 100.0
    path.write_text(json.dumps(kept, indent=2))


def replace_weights(place, run):
    path = one(place, "weights.safetensors", run)
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


def retrain_teacher(place, key):
    """The same run, as another machine may make it."""
    record = json.loads(one(place, "run.json", "big").read_text())
    replace_weights(place, "big")
    weights = measured.file_hash(one(place, "weights.safetensors", "big"))
    write_sealed(one(place, "run.json", "big"), record | {"weights_sha256": weights} | key)


SPOILS = {
    "edited": lambda place: edit(one(place, FILE)),
    "without its seal": lambda place: unseal(one(place, FILE)),
    "cut off": lambda place: one(place, FILE).write_text(one(place, FILE).read_text()[:200]),
    "of other weights": lambda place: replace_weights(place, "one"),
    "of another record": lambda place: write_sealed(
        one(place, "run.json"), json.loads(one(place, "run.json").read_text()) | {"epoch": 1}
    ),
    "of another configuration": lambda place: place.edit("kd: {}", "kd: {temperature: 3}"),
    "of another teacher": lambda place: retrain_teacher(place, {}),
    "of a teacher that is gone": lambda place: one(place, "run.json", "big").unlink(),
    "of other images": lambda place: write_sealed(
        place.results / "datasets/tiny/manifest.json",
        json.loads((place.results / "datasets/tiny/manifest.json").read_text()) | {"digest": "0" * 64},
    ),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_what_is_spoilt_or_stale_is_not_believed_and_not_kept(made, spoil):
    SPOILS[spoil](made)
    assert taken(made) is None
    assert not one(made, "metrics.json").exists()
    assert not one(made, FILE).exists()


def test_what_was_measured_in_another_way_is_not_believed(made, monkeypatch):
    monkeypatch.setattr(measured, "MEASURED", "2 of other things")
    assert taken(made) is None


# --- what the commands do --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_evaluation_takes_it_without_torch_and_one_by_hand_measures(made, monkeypatch, capsys):
    from distillery.cli import main

    kept = json.loads(one(made, FILE).read_text())
    marked = kept | {"metrics": kept["metrics"] | {"top1": 12.25}}
    arguments = ["evaluate", str(made.experiment), "one", "--results", str(made.results), "--threads", "1"]
    write_sealed(one(made, FILE), marked)
    with pytest.raises(SystemExit):
        main([*arguments, "--workers", "0"])
    assert json.loads(one(made, "metrics.json").read_text())["top1"] == kept["metrics"]["top1"]
    script = (
        "import sys\n"
        "from distillery.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert not {'torch', 'numpy', 'pyarrow'} & set(sys.modules), sorted(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, *arguments, "--measured"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.startswith("top1 12.25")
    assert said.endswith("measured at the end of its training\n")
    assert json.loads(one(made, "metrics.json").read_text())["top1"] == 12.25
    # It is used once.
    with pytest.raises(SystemExit):
        main([*arguments, "--workers", "0", "--measured"])
    assert json.loads(one(made, "metrics.json").read_text())["top1"] == kept["metrics"]["top1"]


# --- what comes in between -------------------------------------------------------------------------------------------


def test_a_failure_leaves_a_finished_training(workplace, monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(evaluate, "measure_run", full)
    folder = workplace.make("small", measure=True)
    assert not (folder / FILE).exists()
    assert capsys.readouterr().err.endswith("\nsmall/seed0: not measured: CUDA out of memory. Tried to allocate\n")
    monkeypatch.undo()
    assert evaluate_run(load_experiment(workplace.experiment), "small", 0, workplace.results)["epoch"] == 2


@pytest.mark.slow
def test_a_signal_ends_it_at_once_and_the_training_is_finished(workplace, monkeypatch):
    def wait(*_, **__):
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("it went on")

    monkeypatch.setattr(evaluate, "measure_run", wait)
    job = workplace.job("small", measure=True, checkpoint_seconds=0.0)
    training_run.make_run(job)
    assert (job.folder / "run.json").is_file()
    assert not (job.folder / FILE).exists()
    # Slurm may start a preempted job again whatever it said.
    weights = (job.folder / "weights.safetensors").read_bytes()
    shutil.rmtree(job.folder)
    monkeypatch.undo()
    training_run.make_run(job)
    assert [session["from_epoch"] for session in json.loads((job.folder / "run.json").read_text())["sessions"]] == [
        0,
        2,
    ]
    assert (job.folder / "weights.safetensors").read_bytes() == weights
    assert (job.folder / FILE).is_file()


def test_a_training_that_is_killed_meanwhile_continues_from_its_checkpoint(workplace, monkeypatch):
    """Snakemake removes what a killed job has made."""
    job = workplace.job("small", measure=True, checkpoint_seconds=0.0)
    seen, original = [], training_run.measure_for_later

    def look(*arguments):
        seen.append((job.folder / "run.json").is_file() and (job.work_folder / "checkpoint.pt").is_file())
        return original(*arguments)

    monkeypatch.setattr(training_run, "measure_for_later", look)
    training_run.make_run(job)
    assert seen == [True]
    assert (job.folder / FILE).is_file()
    assert not job.work_folder.exists()


def test_torch_computes_as_in_a_process_of_its_own(workplace, monkeypatch):
    workplace.edit_recipe("deterministic: false")
    found, original = [], evaluate.measure_run

    def look(*arguments, **options):
        found.append((torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark))
        return original(*arguments, **options)

    monkeypatch.setattr(evaluate, "measure_run", look)
    torch.set_deterministic_debug_mode("warn")
    workplace.make("small", measure=True)
    assert found == [(0, False)]
