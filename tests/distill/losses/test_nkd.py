import pytest
import torch

from distillery.distill.losses.dkd import dkd_parts
from distillery.distill.losses.nkd import nkd_loss, nkd_parts
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs
from distillery.errors import UserError
from distillery.experiment.schema.objective import Objective

LABELS = torch.tensor([0, 4, 2, 2])


def pair(classes=5):
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(4, classes, dtype=torch.float64, generator=generator) for _ in range(2)]


def gradient(function, student):
    student = student.clone().requires_grad_()
    function(student).backward()
    return student.grad


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_other_classes_pull_as_those_of_dkd_do(temperature):
    """Cross-entropy and divergence differ by what the teacher alone decides."""
    student, teacher = pair()
    found = gradient(lambda z: nkd_parts(z, teacher, LABELS, temperature)[1], student)
    expected = gradient(lambda z: dkd_parts(z, teacher, LABELS, temperature)[1], student)
    torch.testing.assert_close(found, expected)


def test_the_target_part_is_cross_entropy_weighted_by_the_teacher_at_temperature_one():
    student, teacher = pair()
    rows = torch.arange(4)
    expected = -(teacher.softmax(1)[rows, LABELS] * student.log_softmax(1)[rows, LABELS]).mean()
    for temperature in (1.0, 3.0):
        torch.testing.assert_close(nkd_parts(student, teacher, LABELS, temperature)[0], expected)


def test_soft_targets_count_by_their_largest():
    student, teacher = pair()
    objective = build_objective(Objective.model_validate({"nkd": {}}))
    soft = 0.9 * torch.eye(5, dtype=torch.float64)[LABELS] + 0.02
    found = objective(StepInputs(Outputs(student), soft, Outputs(teacher)))["nkd"]
    torch.testing.assert_close(found, nkd_loss(student, teacher, LABELS))


def test_two_classes_leave_nothing_to_the_second_part():
    student, teacher = pair(2)
    assert nkd_parts(student, teacher, torch.tensor([0, 1, 1, 0]), 1.0)[1] == 0
    with pytest.raises(UserError, match=r"^objective\.nkd\.gamma: 1\.5 .* with 2 classes .*; write `gamma: 0`"):
        Objective.model_validate({"nkd": {}}).check_classes(2)
    Objective.model_validate({"nkd": {"gamma": 0}}).check_classes(2)
