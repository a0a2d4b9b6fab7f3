"""CAT-KD: its loss on class activation maps, and a student whose last layer has no bias."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written
from torch import nn
from torch.nn import functional as F

from distillery.cluster.signals import Stopped
from distillery.distill.losses.cat import CAT, CATHead, cat_loss, class_activation_maps
from distillery.distill.step import Outputs, StepInputs
from distillery.distill.term import TermContext
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.profile import profile_run
from distillery.evaluation.restore import restore_run
from distillery.experiment import load_experiment
from distillery.models.taps import Features


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("options", [{}, {"resolution": 3, "normalize": True}, {"binarize": True}])
def test_the_gradient_is_the_derivative(options):
    teacher = draw(3, 4, 7, 5)
    assert torch.autograd.gradcheck(
        lambda student: cat_loss(student, teacher, **options), [draw(3, 4, 5, 6).requires_grad_()]
    )


def test_a_map_of_zeros_gives_no_gradient():
    student = draw(3, 4, 4, 4)
    student[0] = 0
    student[1, 2] = 0
    student.requires_grad_()
    cat_loss(student, draw(3, 4, 5, 5), normalize=True).backward()
    assert student.grad.isfinite().all()
    assert not student.grad[0].any()
    assert not student.grad[1, 2].any()
    assert student.grad[1, 0].any()
    assert student.grad.abs().max() < 1


@pytest.mark.parametrize("normalize", [True, False])
def test_huge_maps_and_half_precision_stay_finite(normalize):
    student, teacher = (scale * draw(2, 3, 4, 4, dtype=torch.bfloat16) for scale in (1e4, -1e4))
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = cat_loss(student, teacher, normalize=normalize)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_the_teacher_gets_no_gradient_and_is_cut_at_its_mean_size_before_it_is_pooled():
    teacher = torch.tensor([[[[4.0, 0, 0, 0], [0, 0, 0, 0]], [[-9, 1, 1, 1], [1, 1, 1, 1]]]]).requires_grad_()
    student = torch.zeros(1, 2, 2, 4)
    loss = cat_loss(student.requires_grad_(), teacher, resolution=1, binarize=True)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor((0.125**2 + 0) / 2))
    assert teacher.grad is None


def test_the_mean_of_the_maps_are_the_logits_without_the_bias():
    layer, averaged = nn.Linear(6, 5).double(), draw(3, 6, 4, 2)
    cam = class_activation_maps(averaged, layer.weight)
    torch.testing.assert_close(cam.mean(dim=(2, 3)) + layer.bias, layer(averaged.mean(dim=(2, 3))))
    head = CATHead(6, 5).double()
    logits_BC, cam = head(Features(averaged=averaged))
    torch.testing.assert_close(cam, class_activation_maps(averaged, head.convolution.weight[:, :, 0, 0]))
    torch.testing.assert_close(logits_BC, cam.mean(dim=(2, 3)))
    CATHead(**json.loads(json.dumps(head.arguments))).load_state_dict(head.state_dict())


def test_the_heads_first_weights_are_hes_by_outputs():
    torch.manual_seed(0)
    assert CATHead(512, 100).convolution.weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.02)


def test_fixed_keeps_the_students_own_layer_and_trains_it():
    own, theirs = nn.Linear(6, 5), nn.Linear(7, 5)
    context = TermContext(student_features=6, student_classifier=own, teacher_classifier=theirs, classes=5)
    term = CAT(compat="fixed")
    term.setup(context)
    assert term.head(context) is None
    assert CAT().head(context).convolution.weight.shape == (5, 6, 1, 1)
    student, teacher = (Outputs(torch.zeros(3, 5), averaged=draw(3, width, 4, 4).float()) for width in (6, 7))
    term(StepInputs(student, torch.zeros(3), teacher)).backward()
    assert own.weight.grad.any()
    assert theirs.weight.grad is None


def test_a_last_layer_that_is_not_linear_is_refused_in_one_line():
    context = TermContext(student_classifier=nn.Bilinear(6, 6, 5), teacher_classifier=nn.Linear(7, 5))
    CAT().setup(context)
    with pytest.raises(UserError, match=r"^objective.cat: the student: needs a network whose last layer is linear"):
        CAT(compat="fixed").setup(context)


@pytest.mark.slow
def test_a_student_is_trained_resumed_evaluated_and_profiled_with_its_head(workplace, stop_after):
    line = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, cat: {weight: 0.1COMPAT}}}"
    runs = {"student": "", "fixed": ", compat: fixed"}
    lines = "".join(f"    {run}: {line.replace('COMPAT', compat)}\n" for run, compat in runs.items())
    workplace.edit("  tables:", f"{lines}  tables:")
    for run in ("big", "small", "fixed"):
        workplace.make(run)
    folder = workplace.make("student")
    experiment = load_experiment(workplace.experiment)
    weights = load_file(folder / "weights.safetensors")
    assert weights["head.convolution.weight"].shape == (3, 64, 1, 1)
    assert not [name for name in weights if name.startswith("network.fc.")]
    assert {"fc.weight", "fc.bias"} <= set(load_file(workplace.results / "tiny/fixed/seed0/weights.safetensors"))

    student = restore_run(experiment, "student", 0, workplace.results, torch.device("cpu"))
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    trunk = student.network.network
    pixels = student.normalize(images)
    map_BCHW = trunk.layer3(trunk.layer2(trunk.layer1(trunk.relu(trunk.bn1(trunk.conv1(pixels))))))
    expected = F.linear(map_BCHW.mean(dim=(2, 3)), weights["head.convolution.weight"][:, :, 0, 0])
    torch.testing.assert_close(student.predict(images), expected)
    top1 = evaluate_run(experiment, "student", 0, workplace.results)["top1"]
    history = (folder / "history.csv").read_text().splitlines()
    assert top1 == pytest.approx(
        float(dict(zip(history[0].split(","), history[-1].split(","), strict=True))["val_top1"])
    )

    profile, plain = (profile_run(experiment, run, workplace.results) for run in ("student", "small"))
    assert plain["params"] - profile["params"] == 3  # the bias
    assert profile["macs"] - plain["macs"] == 3 * 64 * (2 * 2 - 1)  # at every pixel

    straight = written(folder)
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make("student", results="stopped")
    assert written(workplace.make("student", results="stopped")) == straight
