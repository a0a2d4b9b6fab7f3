"""CRD: the original's stored steps, negatives without state, exact resume, and two processes as one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from distillery.cluster.signals import Stopped
from distillery.distill.losses.crd import CRD, draw_distinct
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import Objective

GOLDEN = Path(__file__).parents[2] / "golden-zoo"


def close(found, stored):
    assert (found - stored).abs().max() <= 1e-9 * stored.abs().max().clamp_min(1e-4)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("name", ["crd_B4_n24", "crd_B3_ragged"])
def test_steps_equal_the_original(name, parts, monkeypatch):
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
        meta = json.loads(str(arrays["meta"]))
    widths = {side: stored[f"feat_{side}0"].shape[1] for side in "st"}
    term = CRD(meta["K"], meta["temperature"], meta["dim"], meta["momentum"])
    labels = np.arange(meta["n_data"])
    term.setup(TermContext(student_features=widths["s"], teacher_features=widths["t"], labels=labels))
    term.double()
    if parts == 2:  # micro-batches: only the first batch, which sets Z, must be whole
        term.Z_s.copy_(stored["Z_student"])
        term.Z_t.copy_(stored["Z_teacher"])
    for side, party in (("s", "student"), ("t", "teacher")):
        getattr(term, f"memory_{side}").copy_(stored[f"memory_{party}"])
        layer = getattr(term, f"embed_{side}")
        layer.weight.data.copy_(stored[f"p.{party}.linear.weight"])
        layer.bias.data.copy_(stored[f"p.{party}.linear.bias"])
    for step in range(meta["steps"]):
        student = stored[f"feat_s{step}"].clone().requires_grad_()
        term.zero_grad()
        loss = 0
        for rows in torch.arange(len(student)).chunk(parts):
            samples = stored[f"sample{step}"][rows]
            monkeypatch.setattr(term, "draw_negatives", lambda epoch, indices_B, samples=samples: samples[:, 1:])
            none = torch.zeros(len(rows), 1)
            outputs = (Outputs(none, (), features[rows]) for features in (student, stored[f"feat_t{step}"]))
            inputs = StepInputs(next(outputs), none, next(outputs), indices_B=stored[f"index{step}"][rows])
            loss = loss + term(inputs) * len(rows) / len(student)
        loss.backward()
        term.end_step()
        close(loss, stored[f"loss{step}"])
        close(student.grad, stored[f"grad.feat_s{step}"])
        for side, party in (("s", "student"), ("t", "teacher")):
            close(getattr(term, f"Z_{side}"), stored[f"Z_{party}"])
            close(getattr(term, f"memory_{side}"), stored[f"memory_{party}_after{step}"])
            for kind in ("weight", "bias"):
                gradient = getattr(getattr(term, f"embed_{side}"), kind).grad
                close(gradient, stored[f"grad{step}.p.{party}.linear.{kind}"])


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
        folder = workplace.make(name, results=results)
        return [(folder / file).read_bytes() for file in ("weights.safetensors", "history.csv")]

    run(name="big")
    return run


def test_mixed_images_are_refused(workplace, train):
    workplace.edit_recipe("mix: {mixup: 0.8}\ndrop_last: true")
    with pytest.raises(UserError, match=r"student\.mix: crd looks at single images and cannot learn from mixed ones"):
        load_experiment(workplace.experiment)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(train, stop_after, monkeypatch, steps):
    straight = train("straight")
    stop_after(steps)
    with pytest.raises(Stopped):
        train()
    monkeypatch.undo()
    assert train() == straight
