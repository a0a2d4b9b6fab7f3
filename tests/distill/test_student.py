"""Images that two networks see alike are normalised once, and each sees what it would see alone."""

import pytest
import torch
from torch import nn

from distillery.distill.student import FeatureExtractor
from distillery.models.normalize import Normalize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


class Writes(nn.Module):
    def forward(self, pixels):
        return pixels.zero_().flatten(1)


def pair(network=None, mean=MEAN, channels_last=False):
    """Of a teacher and a student that may take its pixels, and how often the student normalises by itself."""
    teacher = FeatureExtractor(network or nn.Flatten(), Normalize(MEAN, STD), None, [], False)
    student = FeatureExtractor(nn.Flatten(), Normalize(mean, STD), None, [], channels_last)
    calls = []
    student.normalize.register_forward_hook(lambda *_: calls.append(1))
    student.borrow(teacher)
    return teacher, student, calls


@pytest.fixture
def images():
    return torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def alone(images, mean=MEAN):
    return Normalize(mean, STD)(images).flatten(1)


def test_the_same_images_are_normalised_once_and_kept_no_longer(images):
    teacher, student, calls = pair()
    assert torch.equal(teacher(images).logits_BC, alone(images))
    assert torch.equal(student(images).logits_BC, alone(images))
    assert not calls
    assert teacher._lent is None
    assert torch.equal(student(images).logits_BC, alone(images))
    assert len(calls) == 1


def test_other_images_are_normalised_anew(images):
    teacher, student, calls = pair()
    teacher(images)
    assert torch.equal(student(images.clone()).logits_BC, alone(images))
    assert torch.equal(student(images.flip(0)).logits_BC, alone(images.flip(0)))
    assert len(calls) == 2


@pytest.mark.parametrize("options", [{"mean": STD}, {"channels_last": True}])
def test_what_the_student_would_see_otherwise_is_its_own(images, options):
    teacher, student, calls = pair(**options)
    teacher(images)
    assert torch.equal(student(images).logits_BC, alone(images, options.get("mean", MEAN)))
    assert len(calls) == 1


def test_what_a_network_has_written_into_is_not_taken(images):
    teacher, student, calls = pair(Writes())
    teacher(images)
    assert torch.equal(student(images).logits_BC, alone(images))
    assert len(calls) == 1
