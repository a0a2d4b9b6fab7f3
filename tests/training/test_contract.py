"""What a term may ask for and deploy, in whole runs: a term of this test stands in for ``kd``."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written
from torch import nn

from distillery.cluster.signals import Stopped
from distillery.data.arrow import ArrowImages
from distillery.data.loader import eval_loader
from distillery.data.manifest import load_manifest
from distillery.data.transforms import eval_transform
from distillery.distill.term import Term
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.profile import profile_run
from distillery.evaluation.restore import restore_run
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import KDOptions, Needs
from distillery.models.composite import Head

pytestmark = pytest.mark.slow

EVERY_KIND = {"logits", "stages", "activations", "raw", "embedding", "classifier"}


class Everything(Term):
    """Looks at everything there is."""

    contexts: list = []  # noqa: RUF012
    seen: list = []  # noqa: RUF012
    ended: list = []  # noqa: RUF012

    def __init__(self, **options):
        super().__init__()

    def setup(self, context):
        self.contexts.append(context)
        self.classifier = [context.student_classifier]

    def forward(self, inputs):
        self.seen.append(inputs)
        maps = zip(inputs.student.activations, inputs.teacher.activations, strict=True)
        distance = sum((ours.mean() - theirs.mean()).square() for ours, theirs in maps)
        again = self.classifier[0](inputs.student.embedding_BD)
        return distance + (again - inputs.student.logits_BC).square().sum() + inputs.view.student.logits_BC.mean() ** 2

    def end_step(self):
        self.ended.append(len(self.seen))


class LinearHead(Head):
    """Logits of the embedding and of the last stage."""

    kinds = frozenset({"embedding", "activations"})

    def __init__(self, features, channels, classes):
        super().__init__(features=features, channels=channels, classes=classes)
        self.layer = nn.Linear(features + channels, classes)

    def forward(self, features):
        vector = torch.cat([features.embedding, features.activations[-1].amax(dim=(2, 3))], dim=1)
        return self.layer(vector), vector


class WithHead(Term):
    """Deploys a head; beside it, nothing."""

    def __init__(self, **options):
        super().__init__()

    def head(self, context):
        return LinearHead(context.student_features, context.stages[-1].student_channels, context.classes)

    def forward(self, inputs):
        return inputs.student.logits_BC.square().mean()


@pytest.fixture
def make(workplace, monkeypatch):
    """Make a run ``student`` whose term ``kd`` is another class."""
    line = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, kd: {weight: 0.1}}}"
    workplace.edit("  tables:", f"    student: {line}\n  tables:")

    def run(name="student", term=None, needs=None, head=None, results="results", **machine):
        if term is not None:
            monkeypatch.setattr(KDOptions, "implementation", f"{__name__}:{term.__name__}")
            monkeypatch.setattr(KDOptions, "needs", needs)
            monkeypatch.setattr(KDOptions, "head", head and f"{__name__}:{head.__name__}")
        return workplace.make(name, results=results, **machine)

    run("big")
    return run


ALL = Needs(student=EVERY_KIND, teacher=EVERY_KIND, margins=True, indices=True, view=True)


def test_a_term_gets_all_that_it_asks_for(workplace, make):
    Everything.contexts.clear()
    Everything.seen.clear()
    Everything.ended.clear()
    make(term=Everything, needs=ALL, device_batch=4)
    (context,) = Everything.contexts
    assert [(pair.student_channels, pair.teacher_channels, pair.size) for pair in context.stages] == [
        (16, 16, (8, 8)),
        (32, 32, (4, 4)),
        (64, 64, (2, 2)),
    ]
    assert all(pair.teacher_margin.shape == (1, pair.teacher_channels, 1, 1) for pair in context.stages)
    assert (context.student_features, context.teacher_features, context.classes) == (64, 64, 3)
    assert context.teacher_classifier.weight.shape == (3, 64)
    assert len(context.labels) == 36

    assert [inputs.epoch for inputs in Everything.seen[:3]] == [0.0, 0.0, 0.25]  # two micro-batches a step
    assert Everything.seen[-1].epoch == 1.75
    assert Everything.ended == [2 * step for step in range(1, 9)]
    for inputs in Everything.seen[-3:]:
        assert (context.labels[inputs.indices_B] == inputs.target.numpy()).all()
        for party, other in ((inputs.student, inputs.view.student), (inputs.teacher, inputs.view.teacher)):
            assert not torch.equal(party.logits_BC, other.logits_BC)
            for before, after, raw in zip(party.stages, party.activations, party.raw, strict=True):
                assert torch.equal(after, before.relu())
                assert torch.equal(raw, after)
        logits_BC = context.teacher_classifier(inputs.teacher.embedding_BD)
        torch.testing.assert_close(logits_BC, inputs.teacher.logits_BC)
        assert not inputs.teacher.logits_BC.requires_grad


def test_dali_refuses_a_second_view_in_one_line(make):
    with pytest.raises(UserError, match=r"^--loader: 'dali' gives one view of an image, but the objective needs two"):
        make(term=Everything, needs=ALL, loader="dali")


HEADED = Needs(student={"logits", "embedding", "stages"}, teacher={"logits"})


@pytest.mark.parametrize("extra", ["ema: {decay: 0.9}", "selection: best"])
def test_a_head_is_trained_saved_restored_and_measured_with_its_student(workplace, make, stop_after, extra):
    workplace.edit_recipe(extra)
    make("big")
    folder = make(term=WithHead, needs=HEADED, head=LinearHead)
    weights = load_file(folder / "weights.safetensors")
    assert {"head.layer.weight", "network.conv1.weight"} <= set(weights)
    assert not [name for name in weights if ".fc." in name]  # the layer that the head replaces is not deployed
    assert json.loads((folder / "run.json").read_text())["head"] == {
        "term": "kd",
        "arguments": {"features": 64, "channels": 64, "classes": 3},
    }

    experiment, data = load_experiment(workplace.experiment), workplace.results / "datasets" / "tiny"
    finished = restore_run(experiment, "student", 0, workplace.results, torch.device("cpu"))
    images = ArrowImages(data, load_manifest(data), "val")
    batch = next(iter(eval_loader(images, eval_transform(finished.preprocess), 12, 0, 1, 0, False)))
    head, network = finished.network.head, finished.network.network
    pixels = finished.normalize(batch.images)
    map_BCHW = network.layer3(network.layer2(network.layer1(network.relu(network.bn1(network.conv1(pixels))))))
    logits_BC = head.layer(torch.cat([map_BCHW.mean(dim=(2, 3)), map_BCHW.amax(dim=(2, 3))], dim=1))
    torch.testing.assert_close(finished.predict(batch.images), logits_BC)
    top1 = 100 * (logits_BC.argmax(dim=1) == batch.labels).float().mean().item()
    assert evaluate_run(experiment, "student", 0, workplace.results)["top1"] == pytest.approx(top1)

    make("small")
    profile, plain = (profile_run(experiment, run, workplace.results) for run in ("student", "small"))
    assert profile["params"] - plain["params"] == sum(value.numel() for value in head.parameters()) - (64 * 3 + 3)
    assert profile["macs"] - plain["macs"] == 64 * 3

    straight = written(folder)
    stop_after(5)
    with pytest.raises(Stopped):
        make(results="stopped")
    assert written(make(results="stopped")) == straight


@pytest.mark.parametrize("source", ["teacher", "pretrained"])
def test_a_student_with_a_head_may_teach(workplace, make, source):
    line = "{model: cifar_resnet8, recipe: tiny, teacher: student, objective: {ce: {}, overhaul: {}}"
    workplace.edit("  tables:", f"    last: {line}, margin_source: {source}}}\n  tables:")
    workplace.edit("    student: {", "    student: {weights: 'run:small', ")
    make("small")
    make(term=WithHead, needs=HEADED, head=LinearHead)
    assert (make("last") / "run.json").exists()


@pytest.mark.parametrize("extra", ["", "recipe: tiny, "])
def test_weights_of_a_student_with_a_head_are_refused_in_one_line(workplace, make, extra):
    workplace.edit("  tables:", f"    taken: {{model: cifar_resnet8, {extra}weights: 'run:student'}}\n  tables:")
    make(term=WithHead, needs=HEADED, head=LinearHead)
    with pytest.raises(UserError, match=r"tiny.runs.taken.weights: 'student' was trained by 'kd', whose head replaced"):
        make("taken")
