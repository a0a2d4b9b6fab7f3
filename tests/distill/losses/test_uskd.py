import pytest
import torch
from torch.nn import functional as F

from distillery.distill.losses.uskd import uskd_loss
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import StagePair, TermContext
from distillery.errors import UserError
from distillery.experiment.schema.objective import Objective

LABELS = torch.tensor([0, 4, 2, 2])


def pair(classes=5):
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(4, classes, dtype=torch.float64, generator=generator) for _ in range(2)]


def test_the_label_counts_by_the_square_of_its_probability():
    logits, weak = pair()
    log_p = logits.log_softmax(1)[torch.arange(4), LABELS]
    square = log_p.exp() ** 2
    expected = -((square + 1 - square.mean()) * log_p).mean()
    torch.testing.assert_close(uskd_loss(logits, weak, LABELS, 1.0, 0.0, 0.0), expected)
    leaf = logits.clone().requires_grad_()
    uskd_loss(leaf, weak, LABELS, 1.0, 0.0, 0.0).backward()
    pull = logits.softmax(1) - F.one_hot(LABELS, 5)
    torch.testing.assert_close(leaf.grad, (square + 1 - square.mean())[:, None] * pull / 4)


def test_the_other_classes_get_zipfs_law_by_their_rank():
    logits = torch.tensor([[5.0, 3.0, 1.0, 2.0]], dtype=torch.float64)
    label, zipf = torch.tensor([0]), torch.tensor([1 / 2, 1 / 4, 1 / 3], dtype=torch.float64)  # the label is first
    expected = -(zipf / zipf.sum() * logits[:, 1:].log_softmax(1)).sum()
    torch.testing.assert_close(uskd_loss(logits, logits, label, 0.0, 1.0, 0.0), expected)


def test_the_original_ranks_by_log_probabilities():
    """What the weak logits say then hardly counts: log p spreads further than p."""
    logits = torch.tensor([[9.0, 4.0, 1.0, 0.0]], dtype=torch.float64)
    weak = torch.tensor([[0.0, 0.0, 9.0, 0.0]], dtype=torch.float64)
    norm, shares = logits[0, 1:].logsumexp(0), 1 / 2 + 1 / 3 + 1 / 4
    for reference, expected in ((True, 4 / 2 + 1 / 3), (False, 4 / 3 + 1 / 2)):
        found = uskd_loss(logits, weak, torch.tensor([0]), 0.0, 1.0, 0.0, reference)
        torch.testing.assert_close(found, norm - expected / shares)


@pytest.mark.parametrize("reference", [True, False])
def test_the_gradient_is_the_derivative_where_nothing_is_held_constant(reference):
    logits, weak = (z.requires_grad_() for z in pair())
    assert torch.autograd.gradcheck(lambda z, w: uskd_loss(z, w, LABELS, 0.0, 1.0, 0.7, reference), (logits, weak))


def test_the_weak_logits_alone_learn_by_smoothed_labels():
    logits, weak = pair()
    expected = F.cross_entropy(weak, LABELS, label_smoothing=0.1)
    torch.testing.assert_close(uskd_loss(logits, weak, LABELS, 0.0, 0.0, 1.0), expected)


def context(stages=4, classes=5):
    pairs = tuple(StagePair(2 * stage + 2, 0, None, (4, 4)) for stage in range(stages))
    return TermContext(pairs, classes=classes)


@pytest.mark.parametrize(("stages", "options", "stage"), [(4, {}, 2), (1, {}, 0), (2, {}, 0), (4, {"stage": 0}, 0)])
def test_the_linear_layer_looks_at_the_stage_before_the_last_or_at_another(stages, options, stage):
    torch.manual_seed(0)
    objective = build_objective(Objective.model_validate({"uskd": options}), context(stages))
    maps = tuple(torch.randn(4, 2 * index + 2, 4, 4, requires_grad=True) for index in range(stages))
    objective(StepInputs(Outputs(torch.randn(4, 5), activations=maps), LABELS))["loss"].backward()
    assert [index for index, feature in enumerate(maps) if feature.grad is not None] == [stage]
    assert objective.terms["uskd"].weak.weight.grad.abs().sum() > 0


def test_a_stage_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"^objective\.uskd\.stage: no stage 4; the networks have 4, counted from 0"):
        build_objective(Objective.model_validate({"uskd": {"stage": 4}}), context())


def test_two_classes_leave_the_second_part_nothing():
    with pytest.raises(UserError, match=r"^objective\.uskd\.beta: 0\.1 .* with 2 classes .*; write `beta: 0`"):
        build_objective(Objective.model_validate({"uskd": {}}), context(classes=2))
    Objective.model_validate({"uskd": {"beta": 0}}).check_classes(2)
