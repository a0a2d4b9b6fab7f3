"""SRRL: the student's features in the teacher's width, and through the teacher's last layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distillery.distill.losses.srrl import SRRL, srrl_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext
from distillery.errors import UserError


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def context(classifier=None):
    return TermContext(student_features=4, teacher_features=6, teacher_classifier=classifier or nn.Linear(6, 5))


@pytest.mark.parametrize("bias", [draw(5), None])
def test_the_gradient_is_the_derivative(bias):
    teacher, logits, weight = draw(3, 6, seed=1), draw(3, 5, seed=2), draw(5, 6, seed=3)
    connected = draw(3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: srrl_loss(x, teacher, logits, weight, bias, 0.5), [connected])


def test_neither_the_teachers_answers_nor_its_layer_get_a_gradient():
    teacher, logits, layer = draw(3, 6).requires_grad_(), draw(3, 5).requires_grad_(), nn.Linear(6, 5).double()
    srrl_loss(draw(3, 6, seed=1).requires_grad_(), teacher, logits, layer.weight, layer.bias).backward()
    assert [tensor.grad for tensor in (teacher, logits, layer.weight, layer.bias)] == [None] * 4


def test_features_that_the_teacher_would_have_cost_nothing():
    layer, vector = nn.Linear(6, 5).double(), draw(3, 6)
    assert srrl_loss(vector, vector, layer(vector), layer.weight, layer.bias) == 0


def test_huge_features_in_half_precision_stay_finite():
    with torch.autocast("cpu", torch.bfloat16):
        student, teacher, weight = (1e4 * draw(6, 6, dtype=torch.bfloat16, seed=seed) for seed in range(3))
        loss = srrl_loss(student, teacher, teacher, weight, None)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_the_connectors_first_weights_have_the_teachers_width_as_variance():
    torch.manual_seed(0)
    term = SRRL()
    term.setup(TermContext(student_features=300, teacher_features=400, teacher_classifier=nn.Linear(400, 5)))
    assert term.connector[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)
    assert term.connector[0].bias is None


def test_maps_of_any_size_meet_in_their_means():
    term = SRRL(regression=2, rectify=False)
    layer = nn.Linear(6, 5)
    term.setup(context(layer))
    student, vector, logits = draw(3, 4, 5, 2).float(), draw(3, 6).float(), draw(3, 5).float()
    teacher = Outputs(logits, embedding_BD=vector)
    inputs = StepInputs(Outputs(torch.zeros(3, 5), averaged=student), torch.zeros(3), teacher)
    mean = term.eval().connector(student).mean(dim=(2, 3))
    expected = F.mse_loss(mean, vector) + 2 * F.mse_loss(layer(mean), logits)
    torch.testing.assert_close(term(inputs), expected)


def test_a_rectified_connector_has_nothing_below_zero():
    rectified, plain = SRRL(), SRRL(rectify=False)
    for term in (rectified, plain):
        term.setup(context())
    plain.load_state_dict(rectified.state_dict())
    student = draw(4, 4, 1, 1).float()
    torch.testing.assert_close(rectified.connected(student), plain.connected(student).relu())
    assert (plain.connected(student) < 0).any()


def test_what_cannot_work_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^objective.srrl: the teacher: needs a network whose last layer is linear"):
        SRRL().setup(context(nn.Bilinear(6, 6, 5)))
    term = SRRL()
    term.setup(context())
    with pytest.raises(UserError, match=r"^objective.srrl: a batch of one image gives one number a channel"):
        term.connected(draw(1, 4, 1, 1).float())
    assert term.eval().connected(draw(1, 4, 1, 1).float()).shape == (1, 6)
