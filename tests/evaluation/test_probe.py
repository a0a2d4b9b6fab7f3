"""Nearest neighbours and the linear probe against scikit-learn, and of finished runs on real files."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from distillery.errors import UserError
from distillery.evaluation import probe
from distillery.evaluation.probe import linear_probe, nearest_neighbours, probe_run
from distillery.experiment import load_experiment
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
    found = nearest_neighbours(bank, labels, queries, 5)
    assert (found.numpy() == library.predict(queries.double())).mean() > 0.995
    assert found.shape == (600,)


def test_a_near_neighbour_outweighs_many_far_ones():
    bank = torch.tensor([[1.0, 0.0], *[[0.0, 1.0]] * 19])
    labels = torch.tensor([1, *[0] * 19])
    assert nearest_neighbours(bank, labels, torch.tensor([[2.0, 0.2], [1.0, 1.01]]), 2).tolist() == [1, 0]


@pytest.mark.parametrize("rows_at_once", [65536, 64])
def test_the_linear_probe_is_scikit_learns_logistic_regression(rows_at_once, monkeypatch):
    monkeypatch.setattr(probe, "ROWS_AT_ONCE", rows_at_once)
    (train, labels), (queries, _) = clusters(400), clusters(1000, seed=1)
    scaler = StandardScaler().fit(train.double())
    library = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(scaler.transform(train.double()), labels)
    found = linear_probe(train, labels, queries, 5)
    assert (found.numpy() == library.predict(scaler.transform(queries.double()))).mean() > 0.998
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
def test_embeddings_are_those_that_enter_the_last_layer(trained, monkeypatch):
    seen = []
    monkeypatch.setattr(probe, "nearest_neighbours", lambda *of: seen.append(of) or torch.zeros(12, dtype=torch.long))
    experiment = load_experiment(trained.experiment)
    probe.measure_probes(experiment, "big", 0, trained.results, device=CPU)
    ((bank, labels, queries, classes),) = seen
    assert len(bank) == len(labels) > len(queries) == 12
    assert classes == 3
    assert bank.shape[1] == 64


def test_a_run_that_was_not_made_is_named(trained):
    with pytest.raises(UserError, match=r"run\.json: missing"):
        probe_run(load_experiment(trained.experiment), "taught", 0, trained.results, device=CPU)


@pytest.mark.slow
def test_a_network_without_a_classifier_is_probed(workplace, tmp_path):
    from distillery.models import create_model

    network = create_model("resnet10t", 0)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    line = f"bare: {{model: resnet10t, weights: {tmp_path / 'w.pth'}, classes: none, preprocess: {{size: 32}}}}"
    workplace.edit("runs:", f"runs:\n    {line}")
    make(workplace, "bare")
    probes = probe_run(load_experiment(workplace.experiment), "bare", 0, workplace.results, device=CPU)
    assert probes["features"] == 512
