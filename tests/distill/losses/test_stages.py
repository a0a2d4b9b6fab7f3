"""What terms on maps share: sizes that meet, rows at length 1, and their place in a run."""

import pytest
import torch
from tests.conftest import written

from distillery.cluster.signals import Stopped
from distillery.distill.losses.stages import meet, unit
from distillery.models import create_model
from distillery.models.weights import read_safetensors


def test_two_maps_meet_at_the_smaller_of_each_side():
    student, teacher = torch.randn(2, 3, 8, 3), torch.randn(2, 5, 4, 6)
    found = meet(student, teacher)
    assert [tuple(feature.shape) for feature in found] == [(2, 3, 4, 3), (2, 5, 4, 3)]
    torch.testing.assert_close(found[0], student.unflatten(2, (4, 2)).mean(dim=3))
    same = torch.randn(2, 4, 4, 3)
    assert meet(same, found[1])[0] is same


def test_rows_of_zeros_stay_and_have_no_gradient():
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0]], requires_grad=True)
    made = unit(rows)
    assert made[:2].tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    (made * torch.tensor([1.0, 2.0])).sum().backward()
    assert (rows.grad[1] == 0).all()
    assert rows.grad.isfinite().all()


MAPS = """
    student: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, kd: {}, fitnet: {}, at: {}, nst: {},
              vid: {}, sp: {}, overhaul: {}, masked_generative: {},
              reviewkd: {weight: {value: 2, warmup: 2, from_zero: true}}}}
  tables:"""


@pytest.fixture
def train(workplace):
    workplace.edit_recipe("epochs: 2\ndrop_last: false")
    workplace.edit("\n  tables:", MAPS)

    def run(results="results", name="student"):
        return written(workplace.make(name, results=results))

    run(name="big")
    return run


@pytest.mark.slow
def test_a_sum_of_all_stopped_and_continued_ends_with_the_same_bytes(train, stop_after, monkeypatch, workplace):
    straight = train("straight")
    stop_after(6)
    with pytest.raises(Stopped):
        train()
    monkeypatch.undo()
    assert train() == straight
    # What the terms train is not deployed.
    weights = read_safetensors(workplace.folder / "straight/tiny/student/seed0/weights.safetensors")
    assert set(weights) == set(create_model("cifar_resnet8", 3).state_dict())
