"""What a teacher without a classifier knows, asked of each validation image's nearest others."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from distillery.distill.collective import Collective
from distillery.evaluation import probe
from distillery.training import neighbours
from distillery.training.neighbours import Neighbours, ask_neighbours


class Shown(NamedTuple):
    images: Tensor
    labels: Tensor


def ask(embedding: Tensor, labels: Tensor, images: Tensor | None = None, **others) -> Neighbours:
    """Ask of images whose first pixel is their number."""
    if images is None:
        images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
        images[:, 0, 0, 0] = torch.arange(len(labels))
    loader = [Shown(*part) for part in zip(images.split(7), labels.split(7), strict=True)]
    asked = {"classes": 5, "device": torch.device("cpu"), "collective": Collective(), **others}
    return ask_neighbours(lambda images: embedding[images[:, 0, 0, 0].long()], loader, **asked)


LABELS = torch.arange(40) % 4


def test_an_embedding_of_the_classes_is_always_right_and_one_of_nothing_is_not():
    corners = torch.eye(4)[LABELS] + 0.01 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    found = ask(corners, LABELS)
    assert (found.asked, found.right, found.guessing, found.finite) == (40, 40, 0.25, True)
    # With its own vote, each image would be right.
    assert ask(torch.eye(40), LABELS).right < 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 5))
def test_each_image_is_asked_among_all_others(monkeypatch, seed, images, classes):
    monkeypatch.setattr(probe, "QUERIES_AT_ONCE", 8)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    embedding = torch.randn(images, 6, generator=generator)
    counts = labels.bincount(minlength=5)
    askable = [row for row in range(images) if counts[labels[row]] > 1]
    found = ask(embedding, labels)
    if len({int(labels[row]) for row in askable}) < 2:
        assert found.asked == 0
        return
    right = 0
    for row in askable:
        others = [other for other in range(images) if other != row]
        cosines = torch.cosine_similarity(embedding[row].double(), embedding[others].double())
        votes = torch.zeros(5, dtype=torch.float64)
        for place in cosines.argsort(descending=True)[:20]:
            votes[labels[others[place]]] += (cosines[place] / 0.07).exp()
        right += int(votes.argmax() == labels[row])
    assert (found.asked, found.right) == (len(askable), right)


def test_pixels_are_asked_too():
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    for row, label in enumerate(LABELS):
        images[row, 1, 4 * label : 4 * label + 4] = 200
    images[:, 0, 0, 0] = torch.arange(40)
    found = ask(torch.eye(40), LABELS, images)
    assert found.right_by_pixels == 40
    assert found.right < 20


@pytest.mark.parametrize("labels", [torch.zeros(9, dtype=torch.long), torch.arange(5), torch.tensor([0, 0, 1, 2])])
def test_of_one_class_or_of_none_twice_nothing_is_asked(labels):
    assert ask(torch.randn(len(labels), 3), labels)[:4] == (0, 0, 0, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_embedding_that_is_no_number_is_said(value):
    embedding = torch.randn(40, 3)
    embedding[17, 1] = value
    assert not ask(embedding, LABELS).finite


def test_of_many_images_some_of_all_classes_are_asked(monkeypatch):
    monkeypatch.setattr(neighbours, "MOST_ASKED", 20)
    found = ask(torch.eye(4)[LABELS], LABELS)
    assert (found.asked, found.right) == (20, 20)
    assert 0.25 <= found.guessing < 0.5


def test_the_images_of_other_processes_are_asked_and_answer():
    class Two(Collective):
        def all_gather(self, tensor):
            return torch.cat([tensor, tensor]), slice(0, len(tensor))

    # Each image's double, which the other process has, is its nearest.
    found = ask(torch.eye(40), LABELS, collective=Two())
    assert (found.asked, found.right) == (80, 80)
