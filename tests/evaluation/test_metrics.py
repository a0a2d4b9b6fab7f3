"""The metrics against a library, against hand counts, and over processes."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from distillery.evaluation.metrics import METRICS, Metric, evaluate_model

CPU = torch.device("cpu")


class Batch(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


def batches(scores, labels, sizes):
    """Batches whose images carry the scores that the network is to give."""
    ids = torch.arange(len(labels))
    parts = (tensor.split(sizes) for tensor in (scores, labels, ids))
    return [Batch(*part) for part in zip(*parts, strict=True)]


def measure(scores, labels, sizes=None, **more):
    scores, labels = torch.as_tensor(scores), torch.as_tensor(labels)
    loader = batches(scores, labels, sizes or [len(labels)])
    return evaluate_model(lambda images: images, loader, scores.shape[1], CPU, **more)


def random_scores(images, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    scores = 2 * torch.randn(images, classes, generator=generator)
    scores[torch.arange(images), labels] += 1.5
    return scores, labels


@pytest.mark.parametrize(("images", "classes"), [(997, 10), (500, 100), (64, 5), (50, 2)])
def test_metrics_equal_the_librarys(images, classes):
    scores, labels = random_scores(images, classes)
    measured = measure(scores, labels)
    assert measured["images"] == images
    for name, k in (("top1", 1), ("top5", min(5, classes))):
        accuracy = multiclass_accuracy(scores, labels, classes, average="micro", top_k=k)
        assert measured[name] == pytest.approx(100 * accuracy.item(), abs=1e-4)
    error = multiclass_calibration_error(scores.softmax(1), labels, classes, n_bins=15, norm="l1")
    assert measured["ece"] == pytest.approx(100 * error.item(), abs=1e-4)
    assert measured["nll"] == pytest.approx(torch.nn.functional.cross_entropy(scores, labels).item(), abs=1e-6)
    assert "agreement" not in measured


def test_metrics_counted_by_hand():
    """Confidences 0.5, 0.5, 0.8 and 0.98: bins (7/15, 8/15], (11/15, 12/15] and (14/15, 1]."""
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.3, 0.5, 0.2], [0.1, 0.1, 0.8], [0.98, 0.01, 0.01]])
    measured = measure(probabilities.double().log(), [0, 0, 2, 1])
    assert measured["top1"] == 50
    assert measured["top5"] == 100
    assert measured["nll"] == pytest.approx(-torch.tensor([0.5, 0.3, 0.8, 0.01]).log().mean().item(), rel=1e-6)
    assert measured["ece"] == pytest.approx(100 * (abs(1.0 - 1) + abs(0.8 - 1) + abs(0.98 - 0)) / 4, rel=1e-6)


def test_the_ends_of_the_bins_are_bins():
    certain = measure([[1000.0, 0.0], [1000.0, 0.0]], [0, 1])
    assert certain["ece"] == pytest.approx(50)
    uniform = measure(torch.zeros(3, 20), [1, 2, 3])
    assert uniform["ece"] == pytest.approx(5)
    # Confidences 0.06, right, and 0.1, wrong: the first two bins, which must not even each other out.
    probabilities = torch.tensor([[0.06, *[0.94 / 19] * 19], [0.1, *[0.9 / 19] * 19]], dtype=torch.float64)
    apart = measure(probabilities.log(), [0, 1])
    assert apart["ece"] == pytest.approx(100 * (0.94 + 0.1) / 2, rel=1e-5)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_neither_order_nor_batches_matter(sizes, shuffler):
    scores, labels = random_scores(sum(sizes), 7)
    order = list(range(sum(sizes)))
    shuffler.shuffle(order)
    whole, parts = measure(scores, labels), measure(scores[order], labels[order], sizes)
    assert parts.pop("nll") == pytest.approx(whole.pop("nll"), rel=1e-12)
    assert parts.pop("ece") == pytest.approx(whole.pop("ece"), abs=1e-9)
    assert parts == whole


def test_agreement_is_with_the_teachers_choice_not_with_the_label():
    scores, labels = random_scores(300, 10)
    teacher, _ = random_scores(300, 10, seed=1)
    loader = batches(torch.cat([scores, teacher], dim=1), labels, [128, 128, 44])
    measured = evaluate_model(
        lambda images: images[:, :10], loader, 10, CPU, teacher_predict=lambda images: images[:, 10:]
    )
    expected = (scores.argmax(1) == teacher.argmax(1)).double().mean().item()
    assert measured["agreement"] == pytest.approx(100 * expected)
    assert measured["top1"] == measure(scores, labels)["top1"]
    itself = measure(scores, labels, teacher_predict=lambda images: images)
    assert itself["agreement"] == 100


def test_scores_of_half_precision_are_measured_in_full():
    scores, labels = random_scores(200, 10)
    half = scores.bfloat16()
    measured = measure(half.float(), labels)
    assert evaluate_model(lambda images: half, batches(scores, labels, [200]), 10, CPU) == measured


def test_broken_scores_show():
    scores, labels = random_scores(10, 3)
    scores[3] = float("nan")
    assert not measure(scores, labels)["nll"] < float("inf")


def test_nothing_is_kept_for_gradients():
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def predict(images):
        seen.append(images * weight)
        return seen[-1]

    scores, labels = random_scores(4, 3)
    evaluate_model(predict, batches(scores, labels, [4]), 3, CPU)
    assert not seen[0].requires_grad


def test_a_metric_is_one_entry(monkeypatch):
    def add(sums, batch):
        sums += (batch.logits_BC.softmax(1) - torch.nn.functional.one_hot(batch.labels_B, 10)).square().sum()

    monkeypatch.setitem(METRICS, "brier", Metric(add, lambda sums, images: sums.item() / images))
    scores, labels = random_scores(300, 10)
    expected = (scores.softmax(1) - torch.nn.functional.one_hot(labels, 10)).square().sum(1).mean()
    assert measure(scores, labels, [128, 172])["brier"] == pytest.approx(expected.item(), rel=1e-6)


WORKER = """
import json, sys, torch, torch.distributed as dist
from collections import namedtuple
from distillery.evaluation.metrics import evaluate_model
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
scores, labels, teacher = torch.load(f"{folder}/data.pt")
mine = slice(0, 70) if rank == 0 else slice(70, None)
batch = namedtuple("Batch", "images labels indices")(scores[mine], labels[mine], torch.arange(len(labels))[mine])
loader = [batch] if len(batch.labels) else []
answers = teacher[mine]
measured = evaluate_model(lambda x: x, loader, 10, torch.device("cpu"), teacher_predict=lambda x: answers)
json.dump(measured, open(f"{folder}/{rank}.json", "w"))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("images", [101, 70])
def test_two_processes_measure_what_one_does(images, tmp_path):
    """Unequal shares, and one process without any."""
    scores, labels = random_scores(images, 10)
    teacher, _ = random_scores(images, 10, seed=1)
    torch.save((scores, labels, teacher), tmp_path / "data.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        )
        for rank in (0, 1)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first == pytest.approx(measure(scores, labels, teacher_predict=lambda _: teacher), rel=1e-12)
