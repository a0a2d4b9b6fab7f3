"""The weighted sum of terms as training uses it.

B batch, C classes.
"""

from functools import partial

import pytest
import torch
from tests.distill.made_up import EVERY_TERM, computed, networks, objective_of
from torch import nn

from distillery.distill.losses.cross_entropy import CrossEntropy
from distillery.distill.losses.overhaul import connector
from distillery.distill.objective import WeightedTerms, build_objective, check_names
from distillery.distill.step import Labelled, Outputs, StepInputs
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective


def test_every_registered_term_has_its_options_and_the_other_way_round():
    assert set(TERMS) == set(Objective.model_fields)


def test_the_flow_is_found_when_it_is_due_and_kept_with_the_state():
    student, teacher, context = networks()
    objective = objective_of({"mgd": {"update_every": 2}}, context)
    inputs = StepInputs(student, torch.zeros(4, dtype=torch.long), teacher)
    asked = []

    def calibration_batches(limit):
        asked.append(limit)
        return [inputs]

    for epoch in range(4):
        objective.begin_epoch(epoch, calibration_batches)
    assert len(asked) == 2
    again = objective_of({"mgd": {}}, context)
    again.load_state_dict(objective.state_dict())
    assert torch.equal(again.terms["mgd"].flow0, objective.terms["mgd"].flow0)
    torch.testing.assert_close(again(inputs)["loss"], objective(inputs)["loss"])


def test_a_process_without_labelled_images_still_has_a_gradient_for_all_that_a_term_trains():
    student, teacher, context = networks()
    objective = objective_of({"ofa": {}}, context)
    none = Labelled(torch.zeros(0, dtype=torch.long), 1.0)
    values = objective(StepInputs(student, torch.zeros(4, dtype=torch.long), teacher, labelled=none))
    values["loss"].backward()
    assert values["loss"] == 0
    assert all(value.grad is not None and not value.grad.any() for value in objective.parameters())


def test_a_weight_may_rise_over_the_first_epochs():
    student, teacher, context = networks()
    options = {"ce": {"weight": 0.5}, "kd": {"weight": {"value": 3, "warmup": 4}}}
    objective = objective_of(options, context)
    for epoch, weight in ((0.0, 0.75), (0.9, 0.75), (1.0, 1.5), (3.0, 3.0), (200.5, 3.0)):
        values = objective(StepInputs(student, torch.tensor([0, 1, 2, 3]), teacher, epoch=epoch))
        torch.testing.assert_close(values["loss"], 0.5 * values["ce"] + weight * values["kd"])


def test_a_weight_may_begin_with_none():
    options = Objective.model_validate({"kd": {"weight": {"value": 3, "warmup": 4, "from_zero": True}}}).kd
    assert [options.weight_at(epoch) for epoch in (0, 1, 4, 9)] == [0, 0.75, 3, 3]


def test_margins_come_from_the_loaded_teacher_not_from_a_checkpoint():
    _, _, context = networks()
    objective = objective_of({"mgd": {}, "overhaul": {}}, context)
    assert not [key for key in objective.state_dict() if "margin" in key]


def test_a_smaller_last_batch_weighs_less_only_in_reference_mode():
    _, _, whole = computed({"mgd": {"compat": "reference"}})
    _, _, part = computed({"mgd": {"compat": "reference"}}, batch_fraction=0.5)
    torch.testing.assert_close(part["mgd"], whole["mgd"] / 2)
    _, _, whole = computed({"mgd": {}})
    _, _, part = computed({"mgd": {}}, batch_fraction=0.5)
    torch.testing.assert_close(part["mgd"], whole["mgd"])


@pytest.mark.parametrize("term", ["mgd", "overhaul"])
def test_the_mean_does_not_depend_on_the_resolution(term):
    student, teacher, context = networks()
    torch.manual_seed(0)
    objective = objective_of({term: {"normalize": "mean"}}, context)

    def enlarge(outputs):
        return Outputs(outputs.logits_BC, tuple(map(nn.UpsamplingNearest2d(scale_factor=2), outputs.stages)))

    target = torch.zeros(4, dtype=torch.long)
    objective.begin_epoch(0, lambda limit: [StepInputs(student, target, teacher)])
    small = objective(StepInputs(student, target, teacher))["loss"]
    large = objective(StepInputs(enlarge(student), target, enlarge(teacher)))["loss"]
    torch.testing.assert_close(small, large, rtol=1e-4, atol=0)


@pytest.mark.parametrize("term", ["mgd", "overhaul", "at", "nst", "vid"])
@pytest.mark.parametrize(
    ("ignore", "message"), [((2,), "no stage 2; the networks have 2"), ((0, 1), "leaves no stage")]
)
def test_ignoring_what_is_not_there_or_everything_is_refused(term, ignore, message):
    _, _, context = networks()
    with pytest.raises(UserError, match=message):
        objective_of({term: {"ignore": ignore}}, context)


def test_ignored_stages_keep_their_place_in_the_weights():
    _student, _, both = computed({"overhaul": {}})
    _, objective, last = computed({"overhaul": {"ignore": [0]}})
    assert objective.terms["overhaul"].weights == [0.5, 1.0]
    assert last["overhaul"] < both["overhaul"]


def test_a_connector_starts_as_the_original_does():
    torch.manual_seed(0)
    convolution, norm = connector(64, 256)
    assert convolution.bias is None
    assert convolution.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.05)
    assert (norm.weight == 1).all()


LOGIT_TERMS = [name for name, options in TERMS.items() if options.takes_some_classes]


@pytest.mark.parametrize("term", LOGIT_TERMS)
def test_of_a_teacher_that_knows_some_classes_only_these_are_compared(term):
    """As on a data set of these classes; where the term learns from labels, by their images alone."""
    known, by_label = [0, 2, 3, 5], TERMS[term].needs.labels
    student_BC, teacher_BC = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student_BC = student_BC.requires_grad_()
    teacher_BC[:, [1, 4, 6]] = -1000.0
    target_B = torch.tensor([0, 1, 2, 3, 5, 6])
    objective = build_objective(Objective.model_validate({term: {}}), None, {None: known})
    value = objective(StepInputs(Outputs(student_BC), target_B, Outputs(teacher_BC)))[term]
    rows = torch.tensor([0, 2, 3, 4]) if by_label else torch.arange(6)
    alone = [Outputs(logits_BC[rows][:, known]) for logits_BC in (student_BC, teacher_BC)]
    wanted = objective_of({term: {}})(StepInputs(alone[0], torch.tensor([0, 1, 2, 3]), alone[1]))[term]
    torch.testing.assert_close(value, wanted * len(rows) / 6)
    value.backward()
    assert (student_BC.grad[:, [1, 4, 6]] == 0).all()


def test_a_batch_of_unknown_classes_alone_gives_a_term_of_labels_nothing_and_mixed_targets_their_known_part():
    objective = build_objective(Objective.model_validate({"dkd": {}}), None, {None: [0, 2]})
    student_BC = torch.randn(2, 4, requires_grad=True)
    teacher = Outputs(torch.randn(2, 4))
    assert objective(StepInputs(Outputs(student_BC), torch.tensor([1, 3]), teacher))["dkd"] == 0
    mixed_BC = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.0, 1.0, 0.0, 0.0]])
    among = StepInputs(Outputs(student_BC), mixed_BC, teacher).among(torch.tensor([0, 2]))
    assert among.target.tolist() == [[0.5, 0.5], [0.0, 0.0]]


@pytest.mark.parametrize("name", ["half", "keys", "train"])
def test_a_term_that_is_called_as_a_part_of_torch_is_refused_in_one_line(name):
    class Config:
        def terms(self):
            return {name: None}

    with pytest.raises(UserError, match=f"^objective\\.{name}: torch keeps this name to itself"):
        check_names(Config())
    assert not [term for term in EVERY_TERM if hasattr(torch.nn.ModuleDict, term)]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_weighted_sum_has_the_bits_of_a_stacks_sum_however_many_terms_there_are(count):
    generator = torch.Generator().manual_seed(count)
    for _ in range(50):
        logits_BC = torch.randn(4, 6, generator=generator, requires_grad=True)
        inputs = StepInputs(Outputs(logits_BC), torch.tensor([0, 1, 2, 3]))
        weights = (torch.rand(count, generator=generator) * 10).tolist()
        terms = {f"term{place}": CrossEntropy(place / count) for place in range(count)}
        objective = WeightedTerms(dict(terms), {name: partial(_steady, weights[n]) for n, name in enumerate(terms)})
        loss = objective(inputs)["loss"]
        expected = torch.stack([weight * term(inputs) for weight, term in zip(weights, terms.values(), strict=True)])
        assert torch.equal(loss, expected.sum())
        assert torch.equal(*(torch.autograd.grad(each, logits_BC)[0] for each in (loss, expected.sum())))
    switched_off = WeightedTerms({"ce": CrossEntropy()}, {"ce": partial(_steady, -0.0)})
    assert str(switched_off(inputs)["loss"].item()) == "0.0"


def _steady(weight, epoch):
    return weight
