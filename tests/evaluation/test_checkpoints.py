"""Checkpoints side by side, also of other projects, on real files."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from distillery.cli import main
from distillery.data.arrow import ArrowImages
from distillery.errors import UserError
from distillery.evaluation.checkpoints import evaluate_checkpoints, table_of
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import create_model
from distillery.results import write_sealed
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

SMALL = Preprocess.model_validate({"size": 8})


@pytest.fixture(scope="module")
def place(prepared_tiny, tmp_path_factory):
    """A trained teacher and its student, and the teacher's weights as another project would have written them."""
    folder = tmp_path_factory.mktemp("checkpoints") / "work"
    shutil.copytree(prepared_tiny, folder)
    experiment, results = load_experiment(folder / "config" / "tiny.yaml"), folder / "results"
    for run in ("big", "taught"):
        make_run(Job(experiment, run, 0, results, Machine(workers=0, threads=1)))
    state = load_file(results / "tiny" / "big" / "seed0" / "weights.safetensors")
    state = {f"module.{name.replace('fc.', 'linear.')}": value for name, value in state.items()}
    torch.save({"state_dict": state, "best_prec1": 93.0}, folder / "big.pth")
    return SimpleNamespace(folder=folder, experiment=experiment, results=results, data=results / "datasets" / "tiny")


def run_folder(place, run):
    return str(place.results / "tiny" / run / "seed0")


def external(place):
    return f"cifar_resnet14={place.folder / 'big.pth'}"


@pytest.mark.slow
def test_files_and_runs_are_measured_as_the_runs_themselves(place):
    expected = {run: evaluate_run(place.experiment, run, 0, place.results) for run in ("big", "taught")}
    items = [external(place), run_folder(place, "taught")]
    rows = evaluate_checkpoints(items, run_folder(place, "big"), place.data, SMALL)
    assert [row["model"] for row in rows] == ["cifar_resnet14", "cifar_resnet14", "cifar_resnet8"]
    for row, run in zip(rows, ("big", "big", "taught"), strict=True):
        assert all(row[key] == expected[run][key] for key in ("images", "top1", "top5", "nll", "ece"))
    assert [row["agreement"] for row in rows] == [None, 100.0, expected["taught"]["agreement"]]
    assert rows[0]["parameters"] == sum(p.numel() for p in create_model("cifar_resnet14", 3).parameters())


@pytest.mark.slow
def test_images_are_decoded_once_for_all_that_see_them_alike(place, monkeypatch):
    decoded, original = [], ArrowImages.encoded
    monkeypatch.setattr(ArrowImages, "encoded", lambda self, index: decoded.append(index) or original(self, index))
    items = [external(place), run_folder(place, "taught"), run_folder(place, "big")]
    larger = Preprocess(size=8, resize=16, normalize="none")
    evaluate_checkpoints(items[1:], None, place.data, SMALL)
    once = len(decoded)
    alone = [evaluate_checkpoints([item], None, place.data, larger)[0] for item in items]
    decoded.clear()
    together = evaluate_checkpoints(items, None, place.data, larger)
    assert len(decoded) == 2 * once  # one of them sees another square
    assert together == alone


def test_without_a_teacher_nothing_is_said_of_agreement(place):
    (row,) = evaluate_checkpoints([run_folder(place, "big")], None, place.data)
    assert "agreement" not in row
    assert "Agreement" not in table_of([row])


def test_the_teacher_may_see_its_images_prepared_in_another_way(place):
    row = evaluate_checkpoints(
        [external(place)], run_folder(place, "big"), place.data, Preprocess(size=6, resize=8, normalize="imagenet")
    )[1]
    alone = evaluate_checkpoints(
        [external(place)], None, place.data, Preprocess(size=6, resize=8, normalize="imagenet")
    )[0]
    assert {key: row[key] for key in alone} == alone


@pytest.mark.parametrize(
    ("item", "line"),
    [
        ("cifar_resnet14", r"cifar_resnet14: expected MODEL=WEIGHTS, as cifar_resnet56=weights\.pth, or the folder"),
        ("cifar_resnet14=", r"expected MODEL=WEIGHTS"),
        ("cifar_resnet14=nowhere.pth", r"nowhere\.pth: no such file"),
        ("cifar_resnet15=big.pth", r"no model 'cifar_resnet15'; did you mean"),
        ("cifar_resnet8=FILE", r"big\.pth: weights of another network: .* also has layer1\.1\."),
    ],
)
def test_mistakes_are_one_line(place, item, line):
    with pytest.raises(UserError, match=line) as caught:
        evaluate_checkpoints([item.replace("FILE", str(place.folder / "big.pth"))], None, place.data, SMALL)
    assert "\n" not in str(caught.value)


def test_how_images_are_prepared_is_never_guessed(place):
    with pytest.raises(UserError, match=r"big\.pth: does not say how images .*; add e\.g\. --size 32 --normalize"):
        evaluate_checkpoints([external(place)], None, place.data)


def test_a_run_for_other_classes_is_refused(place, tmp_path):
    shutil.copytree(run_folder(place, "big"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    write_sealed(tmp_path / "run" / "run.json", record | {"classes": 4})
    with pytest.raises(UserError, match=r"run: a network for 4 classes, but tiny has 3$"):
        evaluate_checkpoints([str(tmp_path / "run")], None, place.data)


def evaluate(place, capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", "--workers", "0", "--results", str(place.results), *arguments])
    return caught.value.code, capsys.readouterr()


def test_the_command_prints_a_table(place, capsys):
    code, out = evaluate(
        place, capsys, "--dataset", "tiny", "--size", "8", "--teacher", run_folder(place, "big"), external(place)
    )
    assert code == 0
    head, _, teacher, student = out.out.splitlines()
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    assert cells == [
        *("Model", "Weights", "Params", "Images", "Top-1 (%)", "Top-5 (%)", "NLL", "ECE (%)", "Agreement (%)")
    ]
    assert teacher.split("|")[-2].strip() == "–"
    assert student.split("|")[-2].strip() == "100.00"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["config/tiny.yaml"], "distillery: evaluate: expected CONFIG RUN"),
        (["--dataset", "tinny", "--size", "8", "a=b"], "tinny/manifest.json: missing; first make it with: distillery"),
        (["--dataset", "tiny", "--normalize", "none", "a=b"], "distillery: command line: size: missing"),
        (["--dataset", "tiny", "--model-args", "5", "a=b"], "distillery: --model-args: '5' is no mapping; give e.g."),
        (
            ["--dataset", "tiny", "--size", "8", "--model-args", "{widht: 2}", "cifar_resnet8=x.pth"],
            "distillery: model_args.widht: cifar_resnet8 has no argument 'widht'; did you mean 'width'",
        ),
    ],
)
def test_the_commands_mistakes_are_one_line(place, capsys, arguments, line):
    code, out = evaluate(place, capsys, *arguments)
    assert code == 2
    assert line in out.err
    assert len(out.err.splitlines()) == 1


def test_a_run_for_the_same_classes_in_another_order_is_refused(place, tmp_path):
    folder = shutil.copytree(run_folder(place, "taught"), tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    record["class_names"] = record["class_names"][::-1]
    write_sealed(folder / "run.json", record)
    for item in (str(folder), f"cifar_resnet8={folder / 'weights.safetensors'}"):
        with pytest.raises(UserError, match="its classes are in another order: number 0 is 'cow', but 'ape' in tiny"):
            evaluate_checkpoints([item], None, place.data)
