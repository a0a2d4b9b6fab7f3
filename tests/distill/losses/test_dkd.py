from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.distill.losses.dkd import dkd_loss, dkd_parts
from distillery.distill.losses.kd import kd_loss
from distillery.errors import UserError
from distillery.experiment.schema.objective import Objective

GOLDEN = Path(__file__).parents[2] / "golden-zoo"
LABELS = torch.tensor([0, 4, 2, 2])


def pair(classes=5):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, classes, dtype=torch.float64, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_parts_weighted_by_the_teacher_are_the_divergence_of_probabilities(temperature):
    student, teacher = pair()
    for row in range(4):
        one = slice(row, row + 1)
        target, others = dkd_parts(student[one], teacher[one], LABELS[one], temperature)
        rest = 1 - (teacher[one] / temperature).softmax(dim=1)[0, LABELS[row]]
        torch.testing.assert_close(target + rest * others, kd_loss(student[one], teacher[one], temperature))


def test_two_classes_have_no_second_part_and_are_refused():
    student, teacher = pair(2)
    labels = torch.tensor([0, 1, 1, 0])
    target, others = dkd_parts(student, teacher, labels, 2.0)
    assert others == 0
    torch.testing.assert_close(target, kd_loss(student, teacher, 2.0))
    with pytest.raises(UserError, match=r"^objective\.dkd\.beta: 8 .* with 2 classes .*; write `beta: 0`"):
        Objective.model_validate({"dkd": {}}).check_classes(2)
    Objective.model_validate({"dkd": {"beta": 0}}).check_classes(2)
    Objective.model_validate({"dkd": {}}).check_classes(3)


@pytest.mark.parametrize("gap", [50.0, 300.0, 9999.0])
def test_a_target_however_far_above_the_others_leaves_their_shares_exact(gap):
    """The original subtracts 1000 from the target's logit, which is then not out of the way."""
    student, teacher = pair()
    raised = torch.zeros(4, 5, dtype=torch.float64).scatter(1, LABELS[:, None], gap)
    _, others = dkd_parts(student, teacher, LABELS, 1.0)
    target, same = dkd_parts(student + raised, teacher + raised, LABELS, 1.0)
    torch.testing.assert_close(same, others, rtol=1e-9, atol=0)
    assert target.isfinite()


def test_the_warm_up_is_the_originals():
    stored = np.load(GOLDEN / "schedules_zoo.npz")["dkd_warmup20_epoch_from_1"]
    options = Objective.model_validate({"dkd": {"weight": {"value": 1, "warmup": 20}}}).terms()["dkd"]
    assert [options.weight_at(epoch) for epoch in range(len(stored))] == stored.tolist()


def test_alpha_and_beta_weigh_the_parts():
    student, teacher = pair()
    target, others = dkd_parts(student, teacher, LABELS, 4.0)
    torch.testing.assert_close(dkd_loss(student, teacher, LABELS, 4.0, 0.3, 2.0), 0.3 * target + 2 * others)
