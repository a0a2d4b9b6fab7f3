"""OFA-KD: its loss, and the projectors from maps and from tokens to logits."""

import pytest
import torch
from tests.distill.conftest import finite_in_half_precision
from torch import nn
from torch.nn import functional as F

from distillery.cluster.signals import Stopped
from distillery.distill.losses.kd import kd_loss
from distillery.distill.losses.logits import standardized_logits
from distillery.distill.losses.ofa import OFA, Merge, ofa_loss
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import OwnStage, TermContext
from distillery.errors import UserError
from distillery.experiment.schema.objective import Objective


def draw(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([2, 0, 4])


@pytest.mark.parametrize(("eps", "temperature"), [(1.0, 1.0), (1.5, 1.0), (0.5, 3.0)])
def test_the_gradient_is_the_derivative(eps, temperature):
    teacher, student = 3 * draw(3, 5, seed=1), draw(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ofa_loss(x, teacher, LABELS, eps, temperature), [student])


def test_an_exponent_of_one_is_cross_entropy_with_the_teacher():
    teacher, student = draw(3, 5, seed=1), draw(3, 5).requires_grad_()
    own, kd = (
        torch.autograd.grad(loss, student)[0]
        for loss in (ofa_loss(student, teacher, LABELS), kd_loss(student, teacher, 1.0))
    )
    torch.testing.assert_close(own, kd)
    torch.testing.assert_close(ofa_loss(student, teacher, LABELS), F.cross_entropy(student, teacher.softmax(dim=1)))


def test_a_larger_exponent_stresses_the_label():
    teacher, student = draw(3, 5, seed=1), torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    ofa_loss(student, teacher, LABELS, eps=2).backward()
    at_one = torch.autograd.grad(ofa_loss(student, teacher, LABELS), student)[0]
    of_label = (torch.arange(3), LABELS)
    assert (student.grad[of_label] < at_one[of_label]).all()


def test_the_label_of_a_mixed_image_is_its_larger_share():
    teacher, student = draw(3, 5, seed=1), draw(3, 5)
    mixed = 0.6 * F.one_hot(LABELS, 5).double() + 0.4 * F.one_hot(torch.tensor([1, 1, 1]), 5)
    assert ofa_loss(student, teacher, mixed, 1.5) == ofa_loss(student, teacher, LABELS, 1.5)


@pytest.mark.parametrize("eps", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("classes", [2, 1000])
def test_huge_logits_in_half_precision_stay_finite(eps, classes):
    teacher, student = (draw(3, classes, dtype=torch.bfloat16, seed=seed) for seed in (0, 1))
    teacher[:, 1], student[:, 0] = 1e4, -1e4
    finite_in_half_precision(lambda x: ofa_loss(x, teacher, LABELS % classes, eps), student)


def term_of(shapes, classes=5, features=(8, 12), **options):
    torch.manual_seed(0)
    term = OFA(**options)
    shapes = tuple(shapes)
    term.setup(
        TermContext(student_stages=shapes, classes=classes, student_features=features[0], teacher_features=features[1])
    )
    return term


def loss_of(term, maps, classes=5):
    student = Outputs(draw(3, classes).float().requires_grad_(), unpaired=tuple(maps))
    inputs = StepInputs(student, torch.tensor([1, 0, 1]), Outputs(draw(3, classes, seed=1).float()))
    return term(inputs), inputs


MAPS = [(3, (9, 6)), (5, (5, 3)), (7, (3, 2)), (4, (1, 1))]


def test_every_stage_of_maps_of_any_size_has_logits_that_train_its_projector():
    term = term_of([OwnStage(*shape) for shape in MAPS])
    maps = [draw(3, channels, *size).float().requires_grad_() for channels, size in MAPS]
    loss, inputs = loss_of(term, maps)
    alone = ofa_loss(inputs.student.logits_BC, inputs.teacher.logits_BC, inputs.target)
    stages = sum(
        ofa_loss(projector(feature), inputs.teacher.logits_BC, inputs.target)
        for projector, feature in zip(term.projectors.values(), maps, strict=True)
    )
    torch.testing.assert_close(loss, alone + stages)
    loss.backward()
    assert all(feature.grad.any() for feature in maps)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in term.parameters())
    widths = [projector[-1].in_features for projector in term.projectors.values()]
    assert widths == [12] * 4  # the larger of both networks' embeddings


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("side", "merged"), [(4, 4), (14, 7), (15, 15), (16, 8), (28, 7)])
def test_tokens_are_merged_while_their_grid_is_twice_seven(prefix, side, merged):
    stage = OwnStage(8, (side, side), prefix)
    term = term_of([stage] * 2)
    for number, later in ((0, 1), (1, 1)):
        projector = term.projectors[str(number)]
        assert len(projector[1]) == later
        tokens = draw(3, prefix + side**2, 8).float()
        assert projector[0](tokens).shape == (3, prefix + merged**2, 8)
        assert projector(tokens).shape == (3, 5)
        assert torch.equal(projector[0](tokens)[:, :prefix], tokens[:, :prefix])
    loss, _ = loss_of(term, [draw(3, prefix + side**2, 8).float()] * 2)
    loss.backward()
    assert all(value.grad.isfinite().all() for value in term.parameters())


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_stage_of_another_width_than_the_embedding_has_logits_too(prefix):
    term = term_of([OwnStage(10, (14, 14), prefix)])
    assert term.projectors["0"](draw(3, prefix + 196, 10).float()).shape == (3, 5)


def test_merged_tokens_are_neighbours():
    merge = Merge((2, 4), 1, 4, activate=False)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()
    rows_of_four = torch.arange(8.0).reshape(1, 8, 1)
    assert merge(rows_of_four).tolist() == [[[0, 4, 1, 5], [2, 6, 3, 7]]]


def test_first_weights_are_the_originals():
    term = term_of([OwnStage(64, (8, 8)), OwnStage(64, (14, 14), 1)], classes=1000, features=(64, 512))
    block = term.projectors["0"][0].op
    assert block[5].weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.03)
    assert block[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    for linear in (term.projectors["0"][-1], term.projectors["1"][1][0].mlp.fc1):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not linear.bias.any()


def test_stages_and_exponents_can_be_chosen():
    shapes = [OwnStage(*shape) for shape in MAPS]
    maps = [draw(3, channels, *size).float() for channels, size in MAPS]
    term = term_of(shapes, stages=(1, 3), eps=(1.5, 2.0, 0.5))
    assert list(term.projectors) == ["1", "3"]
    loss, inputs = loss_of(term, maps)
    answers = [term.projectors["1"](maps[1]), term.projectors["3"](maps[3]), inputs.student.logits_BC]
    expected = sum(
        ofa_loss(answer, inputs.teacher.logits_BC, inputs.target, eps)
        for answer, eps in zip(answers, (1.5, 2.0, 0.5), strict=True)
    )
    torch.testing.assert_close(loss, expected)
    logits_alone, inputs = loss_of(term_of(shapes, stages=()), maps)
    torch.testing.assert_close(
        logits_alone, ofa_loss(inputs.student.logits_BC, inputs.teacher.logits_BC, inputs.target)
    )


def test_the_logits_of_stages_are_standardised_too_and_share_one_learned_temperature():
    shapes, maps = [OwnStage(3, (4, 4))], [draw(3, 3, 4, 4).float()]
    term = term_of(shapes, standardize=True)
    loss, inputs = loss_of(term, maps)
    ours, stage, theirs = map(
        standardized_logits, (inputs.student.logits_BC, term.projectors["0"](maps[0]), inputs.teacher.logits_BC)
    )
    torch.testing.assert_close(loss, sum(ofa_loss(logits, theirs, inputs.target) for logits in (ours, stage)))
    term = term_of(shapes, temperature={"lowest": 1.0, "span": 20.0, "reversal": 1.0, "epochs": 10})
    loss, inputs = loss_of(term, maps)
    loss.backward()
    assert term.temperature.parameter.grad.any()
    at_first = term_of(shapes, temperature=1 + 20 * torch.sigmoid(torch.ones(())).item())
    torch.testing.assert_close(loss, loss_of(at_first, maps)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": (0, 4)}, r"^objective.ofa.stages: no stage 4; the student has 4, counted from 0"),
        ({"eps": (1.0, 2.0)}, r"^objective.ofa.eps: 2 values, but 4 stages and the logits need 5, or one for all"),
    ],
)
def test_stages_and_exponents_that_do_not_fit_are_refused_in_one_line(options, message):
    with pytest.raises(UserError, match=message):
        term_of([OwnStage(*shape) for shape in MAPS], **options)


@pytest.mark.parametrize("options", [{"eps": 0}, {"eps": [1, 11]}, {"eps": [1]}, {"stages": [4]}, {"stages": [1, 1]}])
def test_options_are_bounded(options):
    with pytest.raises(ValueError, match="ofa"):
        Objective.model_validate({"ofa": options})


def test_one_image_of_one_pixel_is_refused_in_one_line():
    term = term_of([OwnStage(3, (2, 2)), OwnStage(4, (1, 1))])
    student = Outputs(torch.zeros(1, 5), unpaired=(torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 1, 1)))
    inputs = StepInputs(student, torch.tensor([1]), Outputs(torch.zeros(1, 5)))
    with pytest.raises(
        UserError, match=r"^batch: ofa's batch norms over stage 0 take more than one image of one pixel"
    ):
        term(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("few", ["", "labels: 6, labelled_share: 0.13, "])
def test_a_run_resumes_to_the_byte(workplace, stop_after, few):
    line = "{model: cifar_resnet8, recipe: tiny, FEWteacher: big, objective: {ce: {}, ofa: {eps: 1.5}, srrl: {}}}"
    line = line.replace("FEW", few)
    workplace.edit("  tables:", f"    student: {line}\n  tables:")
    workplace.make("big")
    straight = workplace.make("student")
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make("student", results="stopped")
    again = workplace.make("student", results="stopped")
    for name in ("weights.safetensors", "history.csv"):
        assert (again / name).read_bytes() == (straight / name).read_bytes()
