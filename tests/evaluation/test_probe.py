"""Nearest neighbours and the linear probe against scikit-learn, and of finished runs on real files."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from distillery.cli import main
from distillery.data.prepare import prepare_dataset
from distillery.errors import UserError
from distillery.evaluation import predict, probe
from distillery.evaluation.probe import linear_probe, nearest_neighbours, probe_run
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.models import create_model
from distillery.models.normalize import Normalize
from distillery.results import file_hash, write_sealed
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

CPU = torch.device("cpu")


def clusters(images, features=12, classes=5, seed=0, spread=1.6):
    """Embeddings of overlapping classes whose features differ in scale; the last one never changes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (images,), generator=generator)
    rows = centres[labels] + spread * torch.randn(images, features, generator=generator)
    rows *= torch.logspace(-2, 2, features)
    rows[:, -1] = 3.0
    return rows, labels


@pytest.mark.parametrize("images", [300, 7])
def test_neighbours_vote_as_scikit_learns_do(images):
    (bank, labels), (queries, _) = clusters(images), clusters(600, seed=1)
    library = KNeighborsClassifier(
        n_neighbors=min(20, images), metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(bank.double(), labels)
    assert (nearest_neighbours(bank, labels, queries, 5).numpy() == library.predict(queries.double())).mean() > 0.995
    found = nearest_neighbours(bank.double(), labels, queries.double(), 5)
    assert (found.numpy() == library.predict(queries.double())).all()


def test_a_near_neighbour_outweighs_many_far_ones():
    bank = torch.tensor([[1.0, 0.0], *[[0.0, 1.0]] * 19])
    labels = torch.tensor([1, *[0] * 19])
    assert nearest_neighbours(bank, labels, torch.tensor([[2.0, 0.2], [1.0, 1.01]]), 2).tolist() == [1, 0]


@pytest.mark.parametrize("images", [60, 400])
@pytest.mark.parametrize("rows_at_once", [65536, 64])
def test_the_linear_probe_is_scikit_learns_logistic_regression(rows_at_once, images, monkeypatch):
    monkeypatch.setattr(probe, "ROWS_AT_ONCE", rows_at_once)
    (train, labels), (queries, _) = clusters(images), clusters(1000, seed=1)
    scaler = StandardScaler().fit(train.double())
    library = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(scaler.transform(train.double()), labels)
    found = linear_probe(train, labels, queries, 5)
    assert (found.numpy() == library.predict(scaler.transform(queries.double()))).mean() > 0.999
    assert torch.equal(found, linear_probe(train, labels, queries, 5))


def test_a_class_without_training_images_is_never_predicted():
    (train, labels), (queries, _) = clusters(200), clusters(100, seed=1)
    assert int(linear_probe(train, labels, queries, 6).max()) < 5
    assert int(nearest_neighbours(train, labels, queries, 6).max()) < 5


@pytest.fixture(scope="module")
def trained(prepared_tiny, tmp_path_factory):
    copy = tmp_path_factory.mktemp("probed") / "work"
    shutil.copytree(prepared_tiny, copy)
    place = SimpleNamespace(experiment=copy / "config" / "tiny.yaml", results=copy / "results")
    make(place, "big")
    return place


def make(place, run):
    make_run(Job(load_experiment(place.experiment), run, 0, place.results, Machine(workers=0, threads=1)))


@pytest.mark.slow
def test_a_run_is_probed_to_the_same_bytes_each_time(trained):
    experiment, path = load_experiment(trained.experiment), trained.results / "tiny" / "big" / "seed0" / "probes.json"
    probes = probe_run(experiment, "big", 0, trained.results, device=CPU)
    first = path.read_bytes()
    assert json.loads(first)["digest"] == experiment.spec("big", 0).digest
    assert 0 <= probes["knn"] <= 100
    assert 0 <= probes["linear_probe"] <= 100
    assert (probes["images"], probes["split"]) == (12, "val")
    probe_run(experiment, "big", 0, trained.results, workers=2, device=CPU)
    assert path.read_bytes() == first


@pytest.mark.slow
def test_only_what_tables_show_of_a_run_is_measured(trained, monkeypatch):
    monkeypatch.setattr(probe, "linear_probe", lambda *_: pytest.fail("nobody asked for it"))
    experiment = load_experiment(trained.experiment)
    table = next(table for table in experiment.config.tables.values() if "big" in table.runs())
    config = experiment.config.model_copy(update={"tables": {"t": table.model_copy(update={"columns": ("knn",)})}})
    probes = probe.measure_probes(dataclasses.replace(experiment, config=config), "big", 0, trained.results, device=CPU)
    assert "knn" in probes
    assert "linear_probe" not in probes


@pytest.mark.slow
def test_embeddings_are_those_that_enter_the_last_layer(trained, monkeypatch):
    seen = []
    monkeypatch.setattr(probe, "nearest_neighbours", lambda *of: seen.append(of) or torch.zeros(12, dtype=torch.long))
    experiment = load_experiment(trained.experiment)
    probe.measure_probes(experiment, "big", 0, trained.results, device=CPU)
    monkeypatch.setattr(predict, "BATCH", 5)
    probe.measure_probes(experiment, "big", 0, trained.results, device=CPU)
    (bank, labels, queries, classes), (again, *_) = seen
    # Whatever the batches, each row is that of its image.
    assert torch.allclose(bank, again, atol=1e-5)
    assert len(bank) == len(labels) > len(queries) == 12
    assert classes == 3
    assert bank.shape[1] == 64


def test_a_run_that_was_not_made_is_named(trained):
    with pytest.raises(UserError, match=r"run\.json: missing"):
        probe_run(load_experiment(trained.experiment), "taught", 0, trained.results, device=CPU)


@pytest.mark.slow
def test_a_network_without_a_classifier_is_probed(workplace, tmp_path):
    network = create_model("resnet10t", 0)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    line = f"bare: {{model: resnet10t, weights: {tmp_path / 'w.pth'}, classes: none, preprocess: {{size: 32}}}}"
    workplace.edit("runs:", f"runs:\n    {line}")
    make(workplace, "bare")
    probes = probe_run(load_experiment(workplace.experiment), "bare", 0, workplace.results, device=CPU)
    assert probes["features"] == 512


def test_it_is_scikit_learns_answer_to_what_the_network_makes_of_the_files(trained):
    """By hand from the images' files: rows, labels and splits are in their places."""
    folder = trained.results / "tiny/big/seed0"
    record = json.loads((folder / "run.json").read_text())
    network = create_model("cifar_resnet14", 3)
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    normalize = Normalize(record["statistics"]["mean"], record["statistics"]["std"])

    def embedded(split):
        paths = sorted((trained.experiment.parents[1] / "data/tiny" / split).rglob("*.png"))
        images = torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths])
        entered = []
        with network.eval().fc.register_forward_pre_hook(lambda _, given: entered.append(given[0])), torch.no_grad():
            network(normalize(images))
        return entered[0].double(), np.array([("ape", "bee", "cow").index(path.parent.name) for path in paths])

    (train, labels), (queries, truth) = embedded("train"), embedded("val")
    neighbours = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    scaler = StandardScaler().fit(train)
    regression = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(scaler.transform(train), labels)
    probes = probe.measure_probes(load_experiment(trained.experiment), "big", 0, trained.results, device=CPU)
    assert probes["knn"] == pytest.approx(100 * neighbours.fit(train, labels).score(queries, truth))
    assert probes["linear_probe"] == pytest.approx(100 * regression.score(scaler.transform(queries), truth))


def test_each_probe_has_its_own_share_of_the_validation_images(trained, monkeypatch):
    monkeypatch.setattr(probe, "nearest_neighbours", lambda *_: torch.tensor([0, 0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0]))
    monkeypatch.setattr(probe, "linear_probe", lambda *_: torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0]))
    probes = probe.measure_probes(load_experiment(trained.experiment), "big", 0, trained.results, device=CPU)
    assert probes["knn"] == pytest.approx(100 * 5 / 12)
    assert probes["linear_probe"] == pytest.approx(100 * 11 / 12)


@pytest.mark.filterwarnings("ignore:overflow")
def test_embeddings_that_overflow_are_said(workplace):
    folder = workplace.make("big")
    weights = load_file(folder / "weights.safetensors")
    weights["layer3.1.bn2.weight"].fill_(3e38)
    save_file(weights, folder / "weights.safetensors")
    record = json.loads((folder / "run.json").read_text())
    write_sealed(folder / "run.json", record | {"weights_sha256": file_hash(folder / "weights.safetensors")})
    with pytest.raises(UserError, match=r"weights\.safetensors: the network's embeddings are NaN or infinite"):
        probe_run(load_experiment(workplace.experiment), "big", 0, workplace.results, device=CPU)


def test_a_network_without_any_linear_layer_is_refused(trained, monkeypatch):
    class Bare(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    original = probe.restore_run
    monkeypatch.setattr(
        probe, "restore_run", lambda *arguments: dataclasses.replace(original(*arguments), network=Bare())
    )
    with pytest.raises(UserError, match=r"big/seed0: cannot be probed: cifar_resnet14: no "):
        probe.measure_probes(load_experiment(trained.experiment), "big", 0, trained.results, device=CPU)


def test_a_validation_set_alone_is_not_probed(workplace):
    folder = workplace.make("big")
    record = json.loads((folder / "run.json").read_text())
    data = workplace.folder / "data/tiny/val"
    manifest = prepare_dataset(
        "tiny", Dataset(path=str(data), layout="classes", split="evaluation"), workplace.results / "datasets/tiny", 1
    )
    write_sealed(folder / "run.json", record | {"manifest_digest": manifest.digest})
    with pytest.raises(UserError, match="holds no images of the split train; it is for evaluation only"):
        probe_run(load_experiment(workplace.experiment), "big", 0, workplace.results, device=CPU)


def rename_a_class(workplace):
    """The same images, of which one class is called otherwise: the last one now, and no more the first."""
    data = workplace.folder / "other"
    shutil.copytree(workplace.folder / "data/tiny", data)
    for split in ("train", "val"):
        (data / split / "ape").rename(data / split / "zebu")
    prepare_dataset("tiny", Dataset(path=str(data)), workplace.results / "datasets/tiny", workers=1)


def test_a_probe_shows_a_network_the_squares_and_statistics_that_it_was_trained_with(workplace, monkeypatch):
    workplace.edit("cifar_resnet14, recipe: tiny, seeds: [0]}", "cifar_resnet14, recipe: tiny, preprocess: {size: 12}}")
    path = workplace.make("big") / "run.json"
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    write_sealed(path, json.loads(path.read_text()) | {"statistics": own})
    seen, original = [], probe.FinishedRun.predict

    def predict(self, images):
        seen.append((images.shape[-1], self.normalize.mean.flatten().tolist()))
        return original(self, images)

    monkeypatch.setattr(probe.FinishedRun, "predict", predict)
    probe.probe_run(load_experiment(workplace.experiment), "big", 0, workplace.results)
    assert {size for size, _ in seen} == {12}
    assert all(mean == pytest.approx(own["mean"]) for _, mean in seen)


def test_a_network_whose_classes_are_no_longer_the_data_sets_is_not_probed(workplace, capsys):
    folder = workplace.make("big")
    rename_a_class(workplace)
    with pytest.raises(SystemExit) as ended:
        main(["probe", str(workplace.experiment), "big", "--results", str(workplace.results), "--workers", "0"])
    assert ended.value.code == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("distillery: ")]
    assert "run.json: made from other images than tiny now holds" in line
    assert not (folder / "probes.json").exists()


def test_a_probe_of_a_single_class_is_refused(workplace, capsys):
    data = workplace.folder / "one"
    for split in ("train", "val"):
        shutil.copytree(workplace.folder / "data/tiny" / split / "ape", data / split / "ape")
    prepare_dataset("tiny", Dataset(path=str(data)), workplace.results / "datasets/tiny", workers=1)
    path = workplace.make("big")
    with pytest.raises(UserError, match="tiny has one class only, so that any embedding is right; nothing to probe"):
        probe.probe_run(load_experiment(workplace.experiment), "big", 0, workplace.results)
    assert not (path / "probes.json").exists()
