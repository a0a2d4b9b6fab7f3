"""SimKD: its loss, its projector, and a student that is deployed with the projector and the teacher's classifier."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written
from torch import nn
from torch.nn import functional as F

from distillery.cluster.signals import Stopped
from distillery.data.arrow import ArrowImages
from distillery.data.loader import eval_loader
from distillery.data.manifest import load_manifest
from distillery.data.transforms import eval_transform
from distillery.distill.losses.simkd import SimKD, SimKDHead, simkd_loss
from distillery.distill.term import TermContext
from distillery.errors import UserError
from distillery.evaluation.checkpoints import evaluate_checkpoints
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.profile import profile_run
from distillery.evaluation.restore import restore_run
from distillery.experiment import load_experiment
from distillery.models.taps import Features


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def head_of(size=(3, 3), **options):
    options = {
        "student_features": 4,
        "teacher_features": 6,
        "classes": 5,
        "factor": 2,
        "rectify": True,
        "bias": True,
    } | {
        "size": size,
        **options,
    }
    torch.manual_seed(0)
    return SimKDHead(**options).double()


@pytest.mark.slow
def test_the_gradient_is_the_derivative():
    teacher = draw(3, 6, 5, 7)

    def loss(student):
        return simkd_loss(head_of((5, 7))(Features(averaged=student))[1], teacher)

    assert torch.autograd.gradcheck(loss, [draw(3, 4, 4, 6).requires_grad_()])


@pytest.mark.parametrize(
    ("student", "teacher", "met"),
    [((6, 6), (3, 3), (3, 3)), ((2, 2), (7, 7), (2, 2)), ((2, 9), (4, 5), (2, 5)), ((4, 4), (1, 1), (1, 1))],
)
def test_maps_of_any_sizes_meet_at_the_smaller(student, teacher, met):
    map_s, map_t = draw(3, 4, *student), draw(3, 6, *teacher)
    head = head_of(teacher)
    logits_BC, projected = head(Features(averaged=map_s))
    assert projected.shape == (3, 6, *met)
    torch.testing.assert_close(projected, head.transfer(F.adaptive_avg_pool2d(map_s, met)))
    torch.testing.assert_close(logits_BC, head.classifier(projected.mean(dim=(2, 3))))
    expected = F.mse_loss(projected, F.adaptive_avg_pool2d(map_t, met))
    torch.testing.assert_close(simkd_loss(projected, map_t), expected)


def test_the_teacher_gets_no_gradient():
    teacher = draw(2, 3, 2, 2).requires_grad_()
    simkd_loss(draw(2, 3, 2, 2).requires_grad_(), teacher).backward()
    assert teacher.grad is None


def test_huge_maps_and_half_precision_stay_finite():
    with torch.autocast("cpu", torch.bfloat16):
        loss = simkd_loss(1e4 * draw(2, 3, 2, 2, dtype=torch.bfloat16), -1e4 * draw(2, 3, 2, 2, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def test_the_projector_may_end_without_a_rectifier():
    rectified, plain = head_of(rectify=True), head_of(rectify=False)
    student = Features(averaged=draw(4, 4, 3, 3))
    torch.testing.assert_close(rectified(student)[1], plain(student)[1].relu())
    assert (plain(student)[1] < 0).any()


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_answers_by_a_frozen_copy_of_the_teachers_classifier(bias):
    for layer in (nn.Linear(6, 5, bias=bias), nn.Conv2d(6, 5, 1, bias=bias)):
        head = SimKD().head(TermContext(student_features=4, teacher_features=6, teacher_classifier=layer))
        assert torch.equal(head.classifier.weight, layer.weight.flatten(1))
        assert (head.classifier.bias is None) == (not bias)
        assert not [value for value in head.classifier.parameters() if value.requires_grad]
        assert all(value.requires_grad for value in head.transfer.parameters())
        json.dumps(head.arguments)
        SimKDHead(**head.arguments).load_state_dict(head.state_dict())


def test_what_cannot_be_built_is_refused_in_one_line():
    context = TermContext(student_features=4, teacher_features=6, teacher_classifier=nn.Linear(6, 5))
    with pytest.raises(UserError, match=r"^objective.simkd.factor: 8 leaves the projector no channel, for the teacher"):
        SimKD(factor=8).head(context)
    context = TermContext(student_features=4, teacher_features=6, teacher_classifier=nn.Bilinear(6, 6, 5))
    with pytest.raises(UserError, match=r"^objective.simkd: the teacher: needs a network whose last layer is linear"):
        SimKD().head(context)


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["ema: {decay: 0.9}", "selection: best"])
def test_a_student_is_trained_resumed_evaluated_and_profiled_with_its_projector(workplace, stop_after, extra):
    workplace.edit_recipe(extra)
    line = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {simkd: {}, kd: {weight: 0.1}}}"
    workplace.edit("  tables:", f"    student: {line}\n  tables:")
    workplace.make("big")
    folder = workplace.make("student")
    experiment, data = load_experiment(workplace.experiment), workplace.results / "datasets" / "tiny"

    weights, teacher = (
        load_file(folder / "weights.safetensors"),
        load_file(workplace.results / "tiny/big/seed0/weights.safetensors"),
    )
    for kind in ("weight", "bias"):
        assert torch.equal(weights[f"head.classifier.{kind}"], teacher[f"fc.{kind}"])
    assert not [name for name in weights if name.startswith("network.fc.")]

    student = restore_run(experiment, "student", 0, workplace.results, torch.device("cpu"))
    images = ArrowImages(data, load_manifest(data), "val")
    batch = next(iter(eval_loader(images, eval_transform(student.preprocess), 12, 0, 1, 0, False)))
    trunk = student.network.network
    pixels = student.normalize(batch.images)
    map_BCHW = trunk.layer3(trunk.layer2(trunk.layer1(trunk.relu(trunk.bn1(trunk.conv1(pixels))))))
    projected = student.network.head.transfer(map_BCHW)
    logits_BC = F.linear(projected.mean(dim=(2, 3)), teacher["fc.weight"], teacher["fc.bias"])
    torch.testing.assert_close(student.predict(batch.images), logits_BC)
    top1 = 100 * (logits_BC.argmax(dim=1) == batch.labels).float().mean().item()
    assert evaluate_run(experiment, "student", 0, workplace.results)["top1"] == pytest.approx(top1)
    assert evaluate_checkpoints([str(folder)], None, data)[0]["top1"] == pytest.approx(top1)

    workplace.make("small")
    profile, plain = (profile_run(experiment, run, workplace.results) for run in ("student", "small"))
    extra_weights = 64 * 32 + 32 * 32 * 9 + 32 * 64
    # The teacher's classifier has the shape of the student's own, which is gone.
    assert profile["params"] - plain["params"] == extra_weights + 2 * (32 + 32 + 64)
    assert profile["macs"] - plain["macs"] == 2 * 2 * extra_weights
    record = json.loads((folder / "run.json").read_text())
    assert record["head"]["term"] == "simkd"

    straight = written(folder)
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make("student", results="stopped")
    assert written(workplace.make("student", results="stopped")) == straight
