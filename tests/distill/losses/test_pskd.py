"""PS-KD: how targets refine, what is remembered, and exact resume."""

import pytest
import torch
from tests.conftest import written
from tests.distill.conftest import finite_in_half_precision

from distillery.cluster.signals import Stopped
from distillery.distill.losses import pskd
from distillery.distill.losses.pskd import PSKD, pskd_alpha, pskd_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 2, 1])


def term_of(images=5, classes=3, epochs=4):
    term = PSKD(0.8)
    term.setup(TermContext(labels=torch.arange(images).numpy() % classes, classes=classes, epochs=epochs))
    return term


def step(term, logits, epoch, indices=(3, 0, 4)):
    return term(StepInputs(Outputs(logits), LABELS[: len(logits)], epoch=epoch, indices_B=torch.tensor(indices)))


def test_the_past_weighs_more_from_epoch_to_epoch():
    assert [pskd_alpha(0.8, epoch, 4) for epoch in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_an_image_without_a_past_has_its_label():
    term, logits = term_of(), draw(3, 3)
    plain = torch.nn.functional.cross_entropy(logits, LABELS)
    torch.testing.assert_close(step(term, logits, 0.0), plain)
    term.end_step()
    torch.testing.assert_close(term.past[[3, 0, 4]].double(), logits.softmax(dim=1), rtol=1e-6, atol=1e-7)
    assert (term.past[[1, 2]] == 0).all()
    torch.testing.assert_close(step(term, logits, 0.5), plain)  # the first epoch has none, whatever was seen
    torch.testing.assert_close(step(term, logits, 1.0, (1, 2, 1)), plain)
    expected = pskd_loss(logits, LABELS, term.past[[3, 0, 4]], 0.4)
    torch.testing.assert_close(step(term, logits, 1.0), expected)
    assert (expected - plain).abs() > 0.01


def test_memory_waits_for_the_end_of_the_step_and_keeps_the_last_of_an_image():
    term, first, second = term_of(), draw(2, 3), draw(1, 3, seed=1)
    step(term, first, 0.0, (2, 0))
    step(term, second, 0.0, (2,))
    assert (term.past == 0).all()
    term.end_step()
    torch.testing.assert_close(term.past[2].double(), second[0].softmax(dim=0), rtol=1e-6, atol=1e-7)
    before = term.past.clone()
    broken = first.clone()
    broken[0, 0] = torch.nan
    step(term, broken, 1.0, (2, 0))
    term.end_step()
    assert torch.equal(term.past, before)  # what is not finite is not remembered; the other row is the same again
    term.end_step()  # a step without labelled images
    assert torch.equal(term.past, before)


def test_large_memories_stay_where_they_are(monkeypatch):
    small, large = term_of(), term_of()
    monkeypatch.setattr(pskd, "LARGEST_ON_DEVICE", 4 * 5 * 3)
    assert small.to("meta").past.device.type == "meta"
    monkeypatch.setattr(pskd, "LARGEST_ON_DEVICE", 4 * 5 * 3 - 1)
    assert large.to("meta").past.device.type == "cpu"
    assert large.nothing.device.type == "meta"
    assert "past" in large.state_dict()


def test_the_gradient_is_the_derivative():
    past = draw(3, 3, seed=1).softmax(dim=1)
    assert torch.autograd.gradcheck(lambda z: pskd_loss(z, LABELS, past, 0.5), draw(3, 3).requires_grad_())


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale):
    past = (-scale * draw(3, 3)).softmax(dim=1).float()
    finite_in_half_precision(lambda x: pskd_loss(x, LABELS, past, 0.5), scale * draw(3, 3))


@pytest.fixture
def student(workplace):
    line = "{model: cifar_resnet8, recipe: tiny, epochs: 3, objective: {pskd: {}}}"
    workplace.edit("\n  tables:", f"\n    student: {line}\n  tables:")
    workplace.edit_recipe("repeats: 2\ndrop_last: false")
    return workplace


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 7])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(student, stop_after, monkeypatch, steps):
    student.make("big")
    straight = written(student.make("student", results="straight"))
    stop_after(steps)
    with pytest.raises(Stopped):
        student.make("student", results="results")
    monkeypatch.undo()
    assert written(student.make("student", results="results")) == straight
