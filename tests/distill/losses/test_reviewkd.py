"""ReviewKD: fusion from the deepest map back, for maps of any sizes."""

import pytest
import torch

from distillery.distill.losses.reviewkd import ReviewKD, reviewkd_loss
from distillery.distill.step import Maps, Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.errors import UserError


def test_the_gradient_is_the_derivative():
    generator = torch.Generator().manual_seed(0)
    made, teacher = (torch.randn(2, 2, 5, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    assert torch.autograd.gradcheck(lambda x: reviewkd_loss(x, teacher), made.requires_grad_())


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (8, 8), (3, 9)])
def test_one_difference_everywhere_is_its_square_at_every_size(size):
    loss = reviewkd_loss(torch.full((2, 3, *size), 3.0), torch.zeros(2, 3, *size))
    torch.testing.assert_close(loss, torch.tensor(9.0))


STUDENT, TEACHER = [(5, (8, 6)), (6, (4, 3)), (7, (2, 2))], [(4, (9, 9)), (5, (4, 3)), (9, (1, 2))]


def build(batch=3, **options):
    torch.manual_seed(0)
    pairs = [
        StagePair(inputs, outputs, None, (1, 1), size, wanted)
        for (inputs, size), (outputs, wanted) in zip(STUDENT, TEACHER, strict=True)
    ]
    term = ReviewKD(**options)
    term.setup(TermContext(tuple(pairs), student_features=7, teacher_features=12))

    def outputs(stages, features):
        before = tuple(torch.randn(batch, channels, *size, requires_grad=True) for channels, size in stages)
        after = tuple(feature.detach().relu().requires_grad_() for feature in before)
        embedding_BD = torch.randn(batch, features, requires_grad=True)
        return Outputs(torch.zeros(batch, 1), embedding_BD=embedding_BD, unpooled=Maps(before, (), after))

    return term, StepInputs(outputs(STUDENT, 7), torch.zeros(batch), outputs(TEACHER, 12))


@pytest.mark.parametrize("side", ["after", "before"])
def test_every_map_of_the_student_learns_and_no_map_of_the_teacher(side):
    term, inputs = build(student=side)
    term(inputs).backward()
    maps = inputs.student.unpooled
    wanted, other = (maps.raw, maps.stages) if side == "after" else (maps.stages, maps.raw)
    for feature in (*wanted, inputs.student.embedding_BD):
        assert feature.grad.isfinite().all()
        assert (feature.grad != 0).any()
    assert all(feature.grad is None for feature in other)
    assert all(feature.grad is None for feature in (*inputs.teacher.unpooled.stages, inputs.teacher.embedding_BD))


def test_fused_maps_are_as_wide_as_the_students_embedding_unless_told():
    term, _ = build()
    assert {fusion.conv1[0].out_channels for fusion in term.fusions} == {7}
    term, _ = build(mid_channels=30)
    assert {fusion.conv1[0].out_channels for fusion in term.fusions} == {30}


def test_one_image_alone_is_refused_in_a_line():
    term, inputs = build(batch=1)
    with pytest.raises(UserError, match=r"^objective\.reviewkd: a batch of one image .* set `drop_last: true`$"):
        term(inputs)
    assert term.eval()(inputs).isfinite()
