"""CRD: negatives without state, what is remembered, and exact resume."""

import numpy as np
import pytest
import torch
from tests.conftest import written

from distillery.cluster.signals import Stopped
from distillery.distill.losses.crd import CRD, draw_distinct
from distillery.distill.objective import build_objective
from distillery.distill.term import TermContext
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import Objective


def term_of(labels, negatives, seed=0):
    term = CRD(negatives, features=4)
    term.setup(TermContext(student_features=3, teacher_features=3, labels=labels, classes=labels.max() + 1, seed=seed))
    return term


def test_negatives_are_distinct_images_of_other_classes_and_a_function_of_their_address():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    term, indices = term_of(labels, 300), torch.arange(0, 500, 9)
    drawn = term.draw_negatives(3, indices)
    for index, negatives in zip(indices, drawn.numpy(), strict=True):
        assert len(set(negatives)) == 300
        assert (labels[negatives] != labels[index]).all()
    assert torch.equal(term_of(labels, 300).draw_negatives(3, indices[5:9]), drawn[5:9])
    for other in (term.draw_negatives(4, indices), term_of(labels, 300, seed=1).draw_negatives(3, indices)):
        assert (other == drawn).float().mean() < 0.05


def test_an_image_without_a_label_has_all_others_as_negatives():
    labels = np.array([0, 0, 1, -1, -1, 1])
    allowed = {0: {2, 3, 4, 5}, 2: {0, 1, 3, 4}, 3: {0, 1, 2, 4, 5}, 4: {0, 1, 2, 3, 5}}
    for count in (4, 5):
        term = CRD(negatives=count)
        term.setup(TermContext(student_features=4, teacher_features=4, labels=labels, classes=2))
        drawn = term.draw_negatives(0, torch.tensor(list(allowed)))
        for row, others in zip(drawn.tolist(), allowed.values(), strict=True):
            assert set(row) <= others
            assert len(set(row)) == count or len(others) < count


def test_all_images_are_drawn_equally_often_and_independently():
    keys, below, count = torch.arange(3000) * 7919, torch.full((3000,), 90), 30
    drawn = draw_distinct(keys, below, count)
    expected = 3000 * count / 90
    frequencies = torch.bincount(drawn.flatten(), minlength=90)
    # 89 degrees of freedom: 150 is beyond one in 10,000; a draw without replacement varies less still.
    assert ((frequencies - expected) ** 2 / expected).sum() < 150
    firsts = torch.bincount(drawn[:, 0] * 3 + drawn[:, 1] // 30, minlength=270)
    assert ((firsts - 3000 / 270) ** 2 / (3000 / 270)).sum() < 380


def test_where_other_classes_are_too_small_negatives_repeat():
    labels = np.array([0, 0, 0, 1, 1])
    drawn = term_of(labels, 40).draw_negatives(0, torch.arange(5))
    assert set(drawn[0].tolist()) == {3, 4}
    assert set(drawn[3].tolist()) == {0, 1, 2}


def test_an_image_seen_twice_in_a_step_keeps_its_last_embedding():
    term = term_of(np.array([0, 1, 0]), 1)
    before = term.memory_s.clone()
    rows = torch.eye(4)
    term.pending = [(torch.tensor([2, 0]), rows[:2], rows[:2]), (torch.tensor([2]), rows[2:3], rows[2:3])]
    term.end_step()
    expected = before[2] + rows[2]
    torch.testing.assert_close(term.memory_s[2], expected / expected.norm())
    assert torch.equal(term.memory_s[1], before[1])


def test_what_is_not_finite_is_not_remembered():
    term = term_of(np.array([0, 1, 0]), 1)
    before = term.memory_s.clone()
    rows = torch.eye(4)[:2].clone()
    rows[0, 0] = torch.nan
    term.pending = [(torch.tensor([0, 1]), torch.eye(4)[:2], rows)]
    term.end_step()
    assert torch.equal(term.memory_s[0], before[0])
    assert term.memory_s.isfinite().all()
    assert term.memory_t.isfinite().all()
    assert not torch.equal(term.memory_s[1], before[1])


def test_one_class_alone_is_refused():
    with pytest.raises(UserError, match="all training images are of one class"):
        build_objective(Objective.model_validate({"crd": {}}), TermContext(labels=np.zeros(4, dtype=np.int64)))


CRD_RUN = """
    student: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, crd: {weight: 0.8, negatives: 9}}}
  tables:"""


@pytest.fixture
def train(workplace):
    workplace.edit_recipe("epochs: 2\nsync_batchnorm: true\ndrop_last: false")
    workplace.edit("\n  tables:", CRD_RUN)

    def run(results="results", name="student"):
        return written(workplace.make(name, results=results))

    run(name="big")
    return run


@pytest.mark.slow
def test_mixed_images_are_refused(workplace, train):
    workplace.edit_recipe("mix: {mixup: 0.8}\ndrop_last: true")
    with pytest.raises(UserError, match=r"student\.mix: crd looks at single images and cannot learn from mixed ones"):
        load_experiment(workplace.experiment)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(train, stop_after, monkeypatch, steps):
    straight = train("straight")
    stop_after(steps)
    with pytest.raises(Stopped):
        train()
    monkeypatch.undo()
    assert train() == straight
