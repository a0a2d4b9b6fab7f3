"""Finished runs, trained and imported, measured on real files."""

import csv
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.data.manifest import load_manifest
from distillery.data.transforms import eval_transform
from distillery.errors import UserError
from distillery.evaluation import predict
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.restore import ReadyNetwork
from distillery.experiment import load_experiment
from distillery.experiment.schema.recipe import Preprocess
from distillery.models import create_model
from distillery.reporting.measurements import read_measurements
from distillery.results import write_sealed
from distillery.training.job import Job, Machine
from distillery.training.run import make_run


def make(place, run, seed=0):
    experiment = load_experiment(place.experiment)
    make_run(Job(experiment, run, seed, place.results, Machine(workers=0, threads=1)))


def evaluate(place, run, seed=0, **more):
    return evaluate_run(load_experiment(place.experiment), run, seed, place.results, **more)


def folder(place, run):
    return place.results / "tiny" / run / "seed0"


def validation_images(place):
    data = place.results / "datasets" / "tiny"
    manifest = load_manifest(data)
    images = ArrowImages(data, manifest, "val")
    pixels = torch.stack([decode_rgb(images.encoded(index)) for index in range(len(images))])
    return pixels, torch.as_tensor(images.labels), manifest.statistics


def scores(place, run, model, pixels, mean, std):
    """What a network says, from its weights file alone."""
    network = create_model(model, 3).eval()
    network.load_state_dict(load_file(folder(place, run) / "weights.safetensors"))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    with torch.no_grad():
        return network((pixels.float() / 255 - mean) / std)


@pytest.fixture(scope="module")
def trained(prepared_tiny, tmp_path_factory):
    """One trained teacher and student for all tests of this file, which must leave them as they are."""
    copy = tmp_path_factory.mktemp("trained") / "work"
    shutil.copytree(prepared_tiny, copy)
    place = SimpleNamespace(experiment=copy / "config" / "tiny.yaml", results=copy / "results")
    make(place, "big")
    make(place, "taught")
    return place


@pytest.mark.slow
def test_a_trained_run_is_measured_as_its_last_epoch_was(trained):
    metrics = evaluate(trained, "big")
    last = list(csv.DictReader((folder(trained, "big") / "history.csv").open()))[-1]
    assert metrics["top1"] == pytest.approx(float(last["val_top1"]))
    assert metrics["nll"] == pytest.approx(float(last["val_loss"]), rel=1e-5)
    assert metrics["top5"] == 100
    assert (metrics["run"], metrics["seed"], metrics["split"], metrics["images"]) == ("big", 0, "val", 12)
    assert (metrics["selection"], metrics["epoch"]) == ("last", 2)
    assert metrics["teacher"] is metrics["agreement"] is None
    record = json.loads((folder(trained, "big") / "run.json").read_text())
    assert metrics["digest"] == record["digest"] == load_experiment(trained.experiment).spec("big").digest
    assert len(metrics["weights_sha256"]) == 64
    written = json.loads((folder(trained, "big") / "metrics.json").read_text())
    assert written == metrics | {"seal": written["seal"]}


@pytest.mark.slow
def test_a_students_agreement_is_with_its_teacher(trained):
    metrics = evaluate(trained, "taught")
    pixels, labels, statistics = validation_images(trained)
    student = scores(trained, "taught", "cifar_resnet8", pixels, statistics.mean, statistics.std).argmax(1)
    teacher = scores(trained, "big", "cifar_resnet14", pixels, statistics.mean, statistics.std).argmax(1)
    assert metrics["teacher"] == "big"
    assert metrics["agreement"] == pytest.approx(100 * (student == teacher).double().mean().item())
    assert metrics["top1"] == pytest.approx(100 * (student == labels).double().mean().item())


def test_the_same_run_gives_the_same_bytes_with_any_number_of_workers(trained):
    path = folder(trained, "taught") / "metrics.json"
    evaluate(trained, "taught")
    first = path.read_bytes()
    evaluate(trained, "taught", workers=2)
    assert path.read_bytes() == first


def test_imported_weights_are_measured_by_their_own_preparation(workplace, tmp_path):
    torch.manual_seed(0)
    network = create_model("cifar_resnet8", 3)
    torch.save({"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}}, tmp_path / "w.pth")
    preprocess = "preprocess: {size: 8, normalize: {mean: [0.5, 0.4, 0.3], std: [0.2, 0.3, 0.4]}}"
    workplace.edit("runs:", f"runs:\n    got: {{model: cifar_resnet8, weights: {tmp_path / 'w.pth'}, {preprocess}}}")
    make(workplace, "got")
    metrics = evaluate(workplace, "got")
    pixels, labels, _ = validation_images(workplace)
    expected = scores(workplace, "got", "cifar_resnet8", pixels, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert metrics["nll"] == pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)
    assert metrics["top1"] == pytest.approx(100 * (expected.argmax(1) == labels).double().mean().item())
    assert (metrics["selection"], metrics["epoch"]) == ("imported", None)


@pytest.mark.slow
def test_a_teacher_that_wants_another_size_sees_it(workplace, tmp_path):
    """The teacher cuts the middle out of enlarged images; the student does not."""
    pixels, _, statistics = validation_images(workplace)
    torch.save(undecided_network(pixels).state_dict(), tmp_path / "w.pth")
    preprocess = "preprocess: {size: 8, resize: 16, normalize: none}"
    line = f"old: {{model: cifar_resnet14, weights: {tmp_path / 'w.pth'}, {preprocess}}}"
    workplace.edit("runs:", f"runs:\n    {line}")
    workplace.edit("teacher: big", "teacher: old")
    make(workplace, "old")
    make(workplace, "taught")
    metrics = evaluate(workplace, "taught")
    enlarge = eval_transform(Preprocess(size=8, resize=16))
    prepared = torch.stack([enlarge(image) for image in pixels])
    teacher = scores(workplace, "old", "cifar_resnet14", prepared, [0, 0, 0], [1, 1, 1]).argmax(1)
    student = scores(workplace, "taught", "cifar_resnet8", pixels, statistics.mean, statistics.std).argmax(1)
    assert metrics["agreement"] == pytest.approx(100 * (student == teacher).double().mean().item())
    as_student_sees = scores(workplace, "old", "cifar_resnet14", pixels, [0, 0, 0], [1, 1, 1]).argmax(1)
    assert (student == teacher).sum() != (student == as_student_sees).sum(), "this test could not fail"


def undecided_network(pixels):
    """Fresh weights whose choices vary from image to image."""
    torch.manual_seed(0)
    network = create_model("cifar_resnet14", 3)
    for _ in range(20):
        network.train()(pixels / 255)
    with torch.no_grad():
        network.fc.bias -= network.eval()(pixels / 255).mean(dim=0)
    return network


@pytest.fixture
def teachers_images(monkeypatch):
    """Count the images that the teacher is shown."""
    shown, original = [], ReadyNetwork.predict

    def predict(self, images):
        if len([name for name, _ in self.network.named_parameters()]) > 40:  # of a ResNet-14
            shown.append(len(images))
        return original(self, images)

    monkeypatch.setattr(ReadyNetwork, "predict", predict)
    return shown


@pytest.mark.slow
def test_a_teacher_is_asked_once_for_all_its_students(workplace, teachers_images):
    make(workplace, "big")
    for seed in (0, 1):
        make(workplace, "taught", seed)
    teachers_images.clear()
    evaluate(workplace, "big")
    assert sum(teachers_images) == 12
    first = evaluate(workplace, "taught")["agreement"]
    evaluate(workplace, "taught", 1)
    assert sum(teachers_images) == 12
    # Where it was not evaluated itself, the first student asks it for all.
    predictions = folder(workplace, "big") / "predictions.json"
    predictions.unlink()
    assert evaluate(workplace, "taught")["agreement"] == first
    evaluate(workplace, "taught", 1)
    assert sum(teachers_images) == 24
    assert predictions.is_file()


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["edited", "of other weights", "of other images"])
def test_what_is_kept_of_a_teacher_is_used_only_where_it_fits(workplace, teachers_images, spoil):
    make(workplace, "big")
    make(workplace, "taught")
    teachers_images.clear()
    evaluate(workplace, "big")
    right = evaluate(workplace, "taught")["agreement"]
    predictions = folder(workplace, "big") / "predictions.json"
    kept = json.loads(predictions.read_text())
    wrong = " ".join(str((int(number) + 1) % 3) for number in kept["classes"].split())
    if spoil == "edited":
        predictions.write_text(predictions.read_text().replace(kept["classes"], wrong))
    else:
        key = {"of other weights": "weights_sha256", "of other images": "manifest_digest"}[spoil]
        write_sealed(predictions, kept | {"classes": wrong, key: "0" * 64})
    assert evaluate(workplace, "taught")["agreement"] == right
    assert sum(teachers_images) == 24
    assert json.loads(predictions.read_text()) == kept


def test_progress_is_said_where_there_is_no_terminal(trained, monkeypatch, capsys):
    monkeypatch.setattr(predict, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(predict, "BATCH", 5)
    evaluate(trained, "big")
    said = [line for line in capsys.readouterr().err.splitlines() if "images" in line]
    assert said == [f"big/seed0: {done} of 12 images" for done in (5, 10, 12)]


# --- what stops it -----------------------------------------------------------------------------------------------


def test_a_run_that_was_not_made_is_named_with_its_command(workplace):
    line = (
        r"small/seed1/run\.json: missing; first make it with: distillery train \S+tiny\.yaml small --seed 1 --results"
    )
    with pytest.raises(UserError, match=line):
        evaluate(workplace, "small", seed=1)


def test_a_teacher_that_was_not_made_is_named(workplace, trained):
    shutil.copytree(folder(trained, "taught"), folder(workplace, "taught"))
    with pytest.raises(UserError, match=r"big/seed0/run\.json: missing; .* big --seed 0"):
        evaluate(workplace, "taught")


@pytest.fixture
def copied(workplace, trained):
    """A private copy of the trained teacher."""
    shutil.copytree(folder(trained, "big"), folder(workplace, "big"))
    evaluate(workplace, "big")
    return workplace


def spoil_record(path, **changes):
    record = json.loads((path / "run.json").read_text())
    for key, value in changes.items():
        record.pop(key) if value is None else record.update({key: value})
    write_sealed(path / "run.json", record)


def spoil_weights(path):
    weights = load_file(path / "weights.safetensors")
    weights["fc.bias"][0] = float("nan")
    save_file(weights, path / "weights.safetensors")
    spoil_record(path, weights_sha256=None)


def replace_weights(path):
    weights = load_file(path / "weights.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, path / "weights.safetensors")


def edit_record(path):
    text = (path / "run.json").read_text()
    (path / "run.json").write_text(text.replace('"selection": "last"', '"selection": "best"'))


SPOILS = {
    "another data set": (
        lambda path: spoil_record(path, manifest_digest="0" * 64),
        r"run\.json: made from other images than tiny now holds .*make it again with: distillery train",
    ),
    "another configuration": (
        lambda path: spoil_record(path, digest="0" * 16),
        r"run\.json: made from another configuration \(digest 0{16}, but \S+ now gives \w{16}\); make it again",
    ),
    "a lost key": (lambda path: spoil_record(path, statistics=None), r"run\.json: lacks 'statistics'; make it again"),
    "no JSON": (lambda path: (path / "run.json").write_text("{"), r"run\.json: cannot be read: .*; make it again"),
    "no mapping": (lambda path: (path / "run.json").write_text("[]"), r"run\.json: not a mapping .*; make it again"),
    "lost weights": (lambda path: (path / "weights.safetensors").unlink(), r"weights\.safetensors: no such file"),
    "replaced weights": (replace_weights, r"weights\.safetensors: not the weights that its run\.json is about"),
    "an edited record": (edit_record, r"run\.json: was edited or damaged since it was written: its seal does not fit"),
    "broken weights": (spoil_weights, r"weights\.safetensors: weights that are NaN or infinite: fc\.bias"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_stale_and_damaged_runs_stop_and_keep_the_old_metrics(spoil, copied):
    change, line = SPOILS[spoil]
    before = (folder(copied, "big") / "metrics.json").read_bytes()
    change(folder(copied, "big"))
    with pytest.raises(UserError, match=line) as caught:
        evaluate(copied, "big")
    assert "\n" not in str(caught.value)
    assert (folder(copied, "big") / "metrics.json").read_bytes() == before


def test_a_changed_recipe_makes_the_run_stale(copied):
    copied.edit_recipe("clip_norm: 1.0")
    with pytest.raises(UserError, match="made from another configuration"):
        evaluate(copied, "big")


def test_weights_that_overflow_are_said(copied):
    path = folder(copied, "big") / "weights.safetensors"
    save_file({name: value * 1e30 if name == "fc.weight" else value for name, value in load_file(path).items()}, path)
    weights = load_file(path)
    weights["layer3.1.bn2.weight"].fill_(1e30)
    save_file(weights, path)
    spoil_record(path.parent, weights_sha256=None)
    with pytest.raises(UserError, match=r"weights\.safetensors: the network's scores are NaN or infinite"):
        evaluate(copied, "big")


@pytest.mark.parametrize("file", ["metrics.json", "run.json"])
def test_a_table_is_not_made_of_metrics_that_were_edited_or_are_of_another_run(copied, file):
    path = folder(copied, "big") / file
    copied.edit("rows: [big, small, taught]", "rows: [big]")
    copied.edit("params, macs, size]", "top5]")
    experiment = load_experiment(copied.experiment)
    assert read_measurements(experiment, copied.results)["big"].metrics
    content = json.loads(path.read_text())
    if file == "metrics.json":
        path.write_text(json.dumps(content | {"top1": 100.0}, indent=2))
        line = r"metrics\.json: was edited or damaged since it was written"
    else:
        write_sealed(path, content | {"selection": "best"})
        line = r"metrics\.json: measured another network than .*run\.json is about; make it again with: distillery eval"
    with pytest.raises(UserError, match=line):
        read_measurements(experiment, copied.results)
