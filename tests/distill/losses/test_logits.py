"""What all losses of logits hold alike, and how they may see logits: standardised, at a learned temperature."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distillery import losses
from distillery.distill.losses.logits import (
    hard_labels,
    learned_temperature,
    non_target_log_softmax,
    reversal_at,
    standardized_logits,
    target_log_shares,
)
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs, View
from distillery.distill.term import StagePair, TermContext
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, LogitOptions, Objective

GOLDEN = Path(__file__).parents[2] / "golden-zoo"
BATCH, CLASSES = 5, 7
LABELS = torch.tensor([0, 6, 3, 3, 1])

# Of student's and teacher's logits, at a temperature where there is one.
AT_TEMPERATURE = {
    "kd": lambda s, t, labels, T: losses.kd_loss(s, t, T),
    "dkd": losses.dkd_loss,
    "nkd": losses.nkd_loss,
    "dist": lambda s, t, labels, T: losses.dist_loss(s, t, T),
    "wsld": losses.wsld_loss,
}
LOSSES = AT_TEMPERATURE | {
    "wttm": lambda s, t, labels, T: losses.wttm_loss(s, t, 1 / T),
    "ttm": lambda s, t, labels, T: losses.wttm_loss(s, t, 1 / T, weighted=False),
    "uskd": lambda s, t, labels, T: losses.uskd_loss(s, t.detach(), labels),
    "hard_label": lambda s, t, labels, T: losses.hard_label_loss(s, t),
}
# Parts of these have no gradient by definition.
CONSTANTS = {"wsld", "uskd"}


def logits(seed, scale=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(BATCH, CLASSES, dtype=dtype, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("loss", [LOSSES[name] for name in sorted(LOSSES)], ids=sorted(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 64.0])
def test_extreme_logits_stay_finite(loss, dtype, temperature):
    student = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, 0.0, 0.0]], dtype=dtype)
    for labels in ([0, 0, 0], [1, 0, 2], [2, 2, 1]):
        student.grad = None
        value = loss(student, teacher, torch.tensor(labels), temperature)
        value.backward()
        assert value.isfinite()
        assert value.dtype == torch.float32
        assert student.grad.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", [LOSSES[name] for name in sorted(LOSSES)], ids=sorted(LOSSES))
@settings(deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 20), shift=st.floats(-50, 50))
def test_a_shift_of_all_logits_and_the_order_of_images_and_classes_change_nothing(loss, seed, temperature, shift):
    student, teacher = logits(seed)
    value = loss(student, teacher, LABELS, temperature)
    torch.testing.assert_close(loss(student + shift, teacher - 2 * shift, LABELS, temperature), value)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(BATCH, generator=generator)
    torch.testing.assert_close(loss(student[rows], teacher[rows], LABELS[rows], temperature), value)
    columns = torch.randperm(CLASSES, generator=generator)
    labels = columns.argsort()[LABELS]
    torch.testing.assert_close(loss(student[:, columns], teacher[:, columns], labels, temperature), value)


@pytest.mark.parametrize("loss", [LOSSES[name] for name in sorted(LOSSES)], ids=sorted(LOSSES))
def test_the_teacher_gets_no_gradient(loss):
    student, teacher = (z.requires_grad_() for z in logits(0))
    loss(student, teacher, LABELS, 2.0).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(
    "loss", [LOSSES[name] for name in sorted(set(LOSSES) - CONSTANTS)], ids=sorted(set(LOSSES) - CONSTANTS)
)
def test_the_gradient_is_the_derivative(loss):
    student, teacher = logits(0)
    assert torch.autograd.gradcheck(lambda z: loss(z, teacher, LABELS, 3.0), student.requires_grad_())


@pytest.mark.parametrize("loss", AT_TEMPERATURE.values(), ids=AT_TEMPERATURE)
def test_the_temperature_has_a_gradient_too(loss):
    student, teacher = logits(0)
    temperature = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda T: loss(student, teacher, LABELS, T), temperature)


# --- standardised ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 100), shift=st.floats(-100, 100))
def test_standardised_logits_have_mean_0_and_deviation_1_and_forget_scale_and_shift(seed, scale, shift):
    student, _ = logits(seed)
    seen = standardized_logits(student)
    np.testing.assert_allclose(seen.mean(dim=1), 0, atol=1e-12)
    np.testing.assert_allclose(seen.std(dim=1), 1, rtol=1e-5)
    torch.testing.assert_close(standardized_logits(scale * student + shift), seen, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_standardised_logits_is_their_derivative():
    assert torch.autograd.gradcheck(standardized_logits, logits(0)[0].requires_grad_())


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_equal_logits_have_no_gradient_instead_of_an_exploding_one(value):
    student = torch.full((2, CLASSES), value, requires_grad=True)
    seen = standardized_logits(student)
    (seen * torch.arange(CLASSES)).sum().backward()
    assert torch.equal(seen, torch.zeros_like(seen))
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_standardised_extreme_logits_stay_finite(dtype):
    student = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    standardized_logits(student).square().sum().backward()
    assert student.grad.isfinite().all()


# --- terms ----------------------------------------------------------------------------------------------------------

STANDARDIZED = [name for name, options in TERMS.items() if issubclass(options, LogitOptions)]
LEARNED = [name for name in STANDARDIZED if "temperature" in TERMS[name].model_fields]


def term(name, **options):
    context = TermContext((StagePair(4, 0, None),), classes=CLASSES)
    return build_objective(Objective.model_validate({name: options}), context).double()


def inputs(student, teacher, epoch=0.0):
    view = View(Outputs(student.flip(0)), Outputs(teacher.roll(1, 0)))
    return StepInputs(Outputs(student), LABELS, Outputs(teacher), epoch=epoch, view=view)


def test_every_term_that_compares_the_networks_logits_has_the_options_of_all():
    compare = [name for name, options in TERMS.items() if "logits" in options.needs.student & options.needs.teacher]
    assert compare == STANDARDIZED
    # By their definitions, these have the student's probabilities at temperature 1.
    assert set(STANDARDIZED) - set(LEARNED) == {"wttm", "hard_label"}


@pytest.mark.parametrize("name", sorted({*STANDARDIZED} - {"mlkd"}))  # which keeps its relations as they are
def test_a_term_may_see_standardised_logits(name):
    student, teacher = logits(0)
    plain = term(name)(inputs(standardized_logits(student), standardized_logits(teacher)))["loss"]
    torch.testing.assert_close(term(name, standardize=True)(inputs(student, teacher))["loss"], plain)
    assert term(name)(inputs(student, teacher))["loss"] != plain


@pytest.mark.parametrize("name", STANDARDIZED)
def test_two_standardised_classes_are_refused(name):
    objective = Objective.model_validate({name: {"standardize": True}})
    with pytest.raises(UserError, match=rf"^objective\.{name}\.[a-z]+: .*with 2 classes"):
        objective.check_classes(2)
    with pytest.raises(UserError, match=r"with 2 classes"):
        build_objective(objective, TermContext(classes=2))
    objective.check_classes(3)


@pytest.mark.parametrize("name", LEARNED)
def test_a_terms_temperature_may_be_learned(name):
    student, teacher = logits(0)
    learned = term(name, temperature="learned")
    assert [name for name, _ in learned.named_parameters()] == [f"terms.{name}.temperature.parameter"]
    value = learned(inputs(student, teacher))["loss"]
    first = 1 + 20 / (1 + np.exp(-1))
    torch.testing.assert_close(value, term(name, temperature=first)(inputs(student, teacher))["loss"])
    # It is learned to make the loss larger: the gradient's sign is the reverse of the derivative's.
    parameter = learned.terms[name].temperature.parameter
    for epoch in (0.0, 0.9, 4.0, 9.0, 100.0):
        parameter.grad = None
        learned(inputs(student, teacher, epoch))["loss"].backward()
        with torch.no_grad():
            pace, step = parameter.item(), 1e-5
            values = []
            for moved in (pace + step, pace - step):
                parameter.fill_(moved)
                values.append(learned(inputs(student, teacher, epoch))["loss"].item())
            parameter.fill_(pace)
        derivative = (values[0] - values[1]) / (2 * step)
        share = (1 - np.cos(np.pi * min(int(epoch) + 1, 10) / 10)) / 2
        assert parameter.grad.item() == pytest.approx(-share * derivative, rel=1e-6, abs=1e-9)


def test_a_learned_temperature_keeps_its_bounds_however_far_its_parameter_went():
    for far, bound in ((-1e4, 2.0), (1e4, 7.0)):
        assert learned_temperature(torch.tensor(far), 1.0, lowest=2.0, span=5.0) == bound


def test_the_reversal_rises_over_its_epochs_and_stays():
    stored = np.load(GOLDEN / "schedules_zoo.npz")["ctkd_lambda_cos_0_-1_10"]
    np.testing.assert_allclose([-reversal_at(epoch) for epoch in range(len(stored))], stored, atol=1e-12)
    assert reversal_at(3.9) == reversal_at(3)
    assert reversal_at(50, 0.5, 7) == 0.5


def test_soft_targets_become_the_first_of_their_largest():
    soft = torch.tensor([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0]])
    assert hard_labels(soft).tolist() == [1, 0]
    assert hard_labels(LABELS) is LABELS


def test_log_probabilities_of_the_target_and_of_the_others():
    student, _ = logits(0)
    p = student.softmax(dim=1)
    others = p.clone()
    others[torch.arange(BATCH), LABELS] = 0
    shares = target_log_shares(student, LABELS).exp()
    torch.testing.assert_close(shares[:, 0], p[torch.arange(BATCH), LABELS])
    torch.testing.assert_close(shares[:, 1], others.sum(dim=1))
    found = non_target_log_softmax(student, LABELS)
    assert (found[torch.arange(BATCH), LABELS] == 0).all()
    torch.testing.assert_close(torch.where(others > 0, found.exp(), 0), others / others.sum(dim=1, keepdim=True))
