"""Similarities without labels: what the queue holds, how maps meet, and exact resume."""

import pytest
import torch
from tests.conftest import written

from distillery.cluster.signals import Stopped
from distillery.distill.collective import Collective
from distillery.distill.losses.similarity import (
    Similarity,
    SimilarityLocal,
    default_queue,
    queue_with,
    similarity_local_loss,
    similarity_loss,
)
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import OwnStage, TermContext
from distillery.errors import UserError


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True)


def term_of(queue=6, **options):
    term = Similarity(queue=queue, **options)
    term.setup(TermContext(student_features=3, teacher_features=5))
    return term.double()


def shown(student, teacher):
    none = torch.zeros(len(student), 1)
    return StepInputs(Outputs(none, (), student), none, Outputs(none, (), teacher))


@pytest.mark.parametrize(
    ("images", "rows"), [(1, 16), (49, 16), (100, 64), (249, 64), (1_438, 512), (19_999, 4_096), (1_281_167, 8_192)]
)
def test_the_queue_is_a_quarter_to_half_of_the_images(images, rows):
    assert default_queue(images) == rows


def test_rows_go_in_front_and_the_oldest_fall_out():
    rows = torch.arange(5.0)[:, None]
    assert queue_with(rows, 10 + rows[:2]).flatten().tolist() == [10, 11, 0, 1, 2]
    assert queue_with(rows[:2], 10 + rows).flatten().tolist() == [10, 11]
    assert queue_with(rows, rows[:0]).equal(rows)


def test_the_batch_is_among_the_rows_that_it_is_compared_with():
    term, student, teacher = term_of(), draw(4, 3), draw(4, 5, seed=1)
    queue = torch.cat([unit(teacher), torch.zeros(2, 5, dtype=torch.float64)])
    expected = similarity_loss(term.projector(student), teacher, queue)
    torch.testing.assert_close(term(shown(student, teacher)), expected)
    assert not term.queue.any()  # not before the step's end
    term.end_step()
    torch.testing.assert_close(term.queue[0], queue)


def test_micro_batches_leave_the_queue_that_a_whole_batch_does():
    whole, parts, student, teacher = term_of(), term_of(), draw(4, 3), draw(4, 5, seed=1)
    whole(shown(student, teacher))
    for rows in ([0], [1, 2], [3]):
        parts(shown(student[rows], teacher[rows]))
    for term in (whole, parts):
        term.end_step()
    assert torch.equal(whole.queue, parts.queue)


def test_what_is_not_finite_is_not_remembered():
    term, teacher = term_of(), draw(3, 5)
    teacher[1, 2] = torch.nan
    term(shown(draw(3, 3), teacher))
    term.end_step()
    torch.testing.assert_close(term.queue[0, :2], unit(teacher[[0, 2]]))
    assert not term.queue[0, 2:].any()


def test_queues_of_other_numbers_of_processes_are_taken_in_turn():
    term, state = term_of(), term_of().state_dict()
    state["queue"] = draw(3, 6, 5)
    term.load_state_dict(state)
    assert torch.equal(term.queue, state["queue"][:1])
    several = Collective()
    several.size = 4
    wider = Similarity(queue=6)
    wider.setup(TermContext(student_features=3, teacher_features=5, collective=several))
    wider.double().load_state_dict(state)
    assert torch.equal(wider.queue, state["queue"][[0, 1, 2, 0]])
    with pytest.raises(RuntimeError, match="size mismatch for queue"):
        term_of(queue=7).load_state_dict(state)


def test_the_gradients_are_the_derivatives():
    queue, teacher, maps = unit(draw(6, 5, seed=2)), draw(4, 5, seed=1), draw(2, 5, 3, 2, seed=3)
    assert torch.autograd.gradcheck(lambda x: similarity_loss(x, teacher, queue, 0.5), draw(4, 5).requires_grad_())
    assert torch.autograd.gradcheck(lambda x: similarity_local_loss(x, maps, 0.5), draw(2, 5, 4, 3).requires_grad_())


def test_who_sees_what_the_teacher_sees_has_nothing_to_learn():
    rows, maps = draw(4, 5), draw(2, 5, 3, 3)
    assert similarity_loss(3 * rows, rows, unit(draw(6, 5, seed=1))).abs() < 1e-14
    assert similarity_local_loss(0.1 * maps, maps).abs() < 1e-14
    turned = torch.linalg.qr(draw(5, 5, seed=1)).Q  # how pixels lie to each other is all that counts
    assert similarity_local_loss(torch.einsum("bchw,dc->bdhw", maps, turned), maps).abs() < 1e-14


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 1e4])
def test_edges_stay_finite_in_half_precision(scale):
    rows, maps = ((scale * draw(*shape)).bfloat16().requires_grad_() for shape in ((4, 5), (2, 5, 2, 2)))
    with torch.autocast("cpu", torch.bfloat16):
        losses = [
            similarity_loss(rows, (scale * draw(4, 5, seed=1)).bfloat16(), torch.zeros(6, 5)),
            similarity_loss(rows, draw(4, 5, seed=1).bfloat16(), draw(6, 5, dtype=torch.float32)),
            similarity_local_loss(maps, (1e4 * draw(2, 5, 3, 3)).bfloat16()),
        ]
    for loss in losses:
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
    assert rows.grad.isfinite().all()
    assert maps.grad.isfinite().all()


def test_the_teacher_gets_no_gradient():
    teacher, maps = draw(4, 5).requires_grad_(), draw(2, 5, 3, 3).requires_grad_()
    similarity_loss(draw(4, 5, seed=1).requires_grad_(), teacher, draw(6, 5)).backward()
    similarity_local_loss(draw(2, 5, 2, 2).requires_grad_(), maps).backward()
    assert teacher.grad is None
    assert maps.grad is None


def test_the_projectors_first_weights_are_small():
    torch.manual_seed(0)
    term = Similarity()
    term.setup(TermContext(student_features=300, teacher_features=200))
    assert term.projector.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert term.projector.weight.abs().max() < 2
    assert term.projector.bias.abs().max() < 300**-0.5


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_a_map_of_one_pixel_is_refused_in_one_line(name):
    lasts = {"student_last": OwnStage(4, (2, 2)), "teacher_last": OwnStage(5, (2, 2))} | {
        f"{name}_last": OwnStage(6, (1, 1))
    }
    with pytest.raises(UserError, match=rf"^objective.similarity_local: no map of the {name} has more than one pixel"):
        SimilarityLocal().setup(TermContext(**lasts))


@pytest.fixture
def student(workplace):
    terms = "{similarity: {queue: 24}, similarity_local: {}}"
    line = f"{{model: cifar_resnet8, recipe: tiny, epochs: 3, teacher: big, labels: 0, objective: {terms}}}"
    workplace.edit("\n  tables:", f"\n    student: {line}\n  tables:")
    workplace.edit_recipe("mix: {mixup: 1.0}\nclip_norm: 1.0\npreprocess: {size: 16}")
    return workplace


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 7])
def test_stopped_at_any_step_and_continued_ends_with_the_same_bytes(student, stop_after, monkeypatch, steps):
    student.make("big")
    straight = written(student.make("student", results="straight"))
    assert b"train_similarity_local" in straight["history.csv"]
    stop_after(steps)
    with pytest.raises(Stopped):
        student.make("student", results="results")
    monkeypatch.undo()
    assert written(student.make("student", results="results")) == straight
