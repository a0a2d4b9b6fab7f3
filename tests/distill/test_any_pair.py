"""Every term takes a training step with any pair of networks, or says in one line why it cannot.

Whatever is added to ``TERMS`` is tried here without being named.
"""

import copy
import re
from functools import cache, reduce
from operator import or_

import numpy as np
import pytest
import torch
from torch import nn

from distillery.distill.assembly import Side, TeacherSide, assemble
from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.step import Outputs, StepInputs, View
from distillery.distill.student import FeatureExtractor
from distillery.distill.teacher import Teacher
from distillery.distill.term import TermContext, pair_context
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.experiment.schema.recipe import Recipe
from distillery.models import create_model
from distillery.models.taps import Features, describe_pair, pair_networks, pairing, plan_taps

SIZE, CLASSES, IMAGES = 32, 5, 24

NETWORKS = {
    "cifar_resnet8": {},
    "cifar_resnet8x4": {},
    "cifar_vgg8": {},
    "cifar_wrn_16_1": {},  # activates before its convolutions
    "cifar_densenet40": {},
    "cifar_mobilenet_v2": {},  # depthwise, with linear ends
    "cifar_shufflenet_v2": {},  # ends by joining branches
    "timm:test_efficientnet": {},
    "timm:test_convnext": {},  # channels last, layer norms
    "torchvision:squeezenet1_1": {},  # maps of 7, 3 and 1 pixels, no batch norm, no linear layer
    "timm:test_vit": {"img_size": SIZE},
    "timm:deit_tiny_distilled_patch16_224": {"img_size": SIZE, "depth": 4},  # two tokens in front
    "timm:resmlp_12_224": {"img_size": SIZE},  # tokens without one in front
}
# As student, as teacher: each kind of network on both sides.
PAIRS = [
    ("cifar_resnet8", "timm:test_vit"),
    ("timm:test_vit", "cifar_wrn_16_1"),
    ("cifar_wrn_16_1", "cifar_vgg8"),
    ("cifar_vgg8", "cifar_mobilenet_v2"),
    ("cifar_mobilenet_v2", "cifar_resnet8x4"),
    ("cifar_shufflenet_v2", "cifar_densenet40"),
    ("cifar_densenet40", "timm:test_convnext"),
    ("timm:test_convnext", "torchvision:squeezenet1_1"),
    ("torchvision:squeezenet1_1", "timm:deit_tiny_distilled_patch16_224"),
    ("timm:deit_tiny_distilled_patch16_224", "timm:test_efficientnet"),
    ("timm:test_efficientnet", "timm:resmlp_12_224"),
    ("timm:resmlp_12_224", "cifar_shufflenet_v2"),
    ("timm:test_vit", "timm:deit_tiny_distilled_patch16_224"),
]
# Options with which a term can be tried on so few images.
OPTIONS = {"crd": {"negatives": 7}}


@pytest.fixture
def planned_once(monkeypatch):
    """Plans of networks that many terms tap."""
    plans = {}

    def plan(network, size, name):
        if (name, size) not in plans:
            plans[name, size] = plan_taps(network, size, name)
        return plans[name, size]

    monkeypatch.setattr(pairing, "plan_taps", plan)
    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "teacher"), [pytest.param(*pair, marks=[pytest.mark.sweep] * (pair not in PAIRS[:2])) for pair in PAIRS]
)
@pytest.mark.filterwarnings("ignore")
def test_every_term_takes_a_step(student, teacher, planned_once, one_thread):
    torch.manual_seed(0)
    networks = [untrained(name) for name in (student, teacher)]
    assert not faults(lambda term: take_a_step(term, *copy.deepcopy(networks), (student, teacher)))


def faults(tried):
    """What is wrong with each term, by what ``tried`` says of it. All of these networks end in a linear layer."""
    found = []
    for term in TERMS:
        try:
            fault = tried(term)
        except UserError as error:
            fault = f"refused: {error}"
        if fault:
            found.append(f"{term}: {fault}")
    return found


def untrained(name, classes=CLASSES, **arguments):
    network = create_model(name, classes, **(arguments or NETWORKS.get(name, {})))
    for weight in network.parameters():
        if weight.ndim == 2 and not weight.any():  # a last layer that begins at zero answers all images alike
            nn.init.normal_(weight, std=0.1)
    return network


def take_a_step(name, student, teacher, names):
    """What is wrong with a step of a term, as training takes it; None if nothing is."""
    config = Objective.model_validate({name: OPTIONS.get(name, {})})
    needs, batch = config.needs(), 6 if config.sampling() else 5
    run = TermContext(labels=np.arange(IMAGES) // 2 % CLASSES, classes=CLASSES, epochs=2)
    learner, (answers,), *_ = assemble(
        Side(student, names[0], SIZE, nn.Identity()), [TeacherSide(teacher, names[1], SIZE, nn.Identity())], config, run
    )
    learner.train()
    student, objective = learner.student, learner.objective
    images, other = torch.randn(2, batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(batch)
    target = torch.from_numpy(run.labels)[indices]
    with torch.no_grad():
        shown = StepInputs(learner.extractor(images), target, answers(images), indices_B=indices)
        objective.begin_epoch(0, lambda limit: [shown])
    answer = answers(images) if needs.teacher else None
    view = (other, answers(other) if needs.teacher else None) if needs.view or needs.partner else None
    values, _ = learner(images, target, answer, 1.0, 0.0, indices, view)
    values["loss"].backward()
    objective.end_step()
    gradients = [weight.grad for weight in learner.parameters() if weight.grad is not None]
    if not values["loss"].isfinite():
        return f"is {values['loss']}"
    if not all(gradient.isfinite().all() for gradient in gradients):
        return "has gradients that are not finite"
    if not any((weight.grad != 0).any() for weight in student.parameters() if weight.grad is not None):
        return "teaches the student nothing"
    if any(weight.grad is None for weight in objective.parameters()):
        return "has parameters that are not trained"
    if any(weight.grad is not None for weight in teacher.parameters()):
        return "trains the teacher"
    return None


# --- the sweep: every network is a student once and a teacher once ---------------------------------------------------


IMAGE = {"img_size": SIZE}
# Each learns from the next, the last from the first; kinds of networks alternate. A number is the side of the images.
RINGS = {
    2: [
        "cifar_resnet8",
        "timm:test_vit",
        "timm:lcnet_035",
        ("timm:gmlp_ti16_224", IMAGE),
        "torchvision:shufflenet_v2_x0_5",
    ],
    1000: [
        "timm:test_resnet",
        ("timm:convit_tiny", IMAGE),
        "cifar_wrn_16_1",
        "timm:test_mambaout",
        ("timm:mnasnet_small", 48),
    ],
    CLASSES: [
        "cifar_densenet40",
        "timm:test_vit2",
        ("torchvision:squeezenet1_1", 64),
        ("timm:coat_lite_tiny", IMAGE),
        "timm:test_byobnet",
        ("timm:deit_tiny_distilled_patch16_224", {**IMAGE, "depth": 4}),
        "cifar_crd_mobilenet_v2",
        ("timm:test_vit_relpos", IMAGE),
        ("timm:tinynet_e", 64),
        ("timm:pit_ti_224", IMAGE),
        "timm:test_nfnet",
        ("timm:xcit_nano_12_p16_224", 48),
        "cifar_shufflenet_v2",
        ("timm:resmlp_12_224", IMAGE),
        "timm:test_convnext2",
        ("timm:levit_128s", {"img_size": 64}),
        "cifar_resnet8x4",
        ("timm:test_vit3", IMAGE),
        "timm:mobilevitv2_050",
        ("timm:test_maxvit", IMAGE),
        "timm:mobilenetv3_small_050",
        "timm:test_vit4",
        ("timm:test_efficientnet_gn", 24),
        ("timm:test_coatnet", IMAGE),
        "timm:regnety_002",
        "timm:efficientvit_m0",
        "cifar_vgg8",
        "timm:pvt_v2_b0",
        "timm:dla46x_c",
        "timm:swiftformer_xs",
        "torchvision:mnasnet0_5",
        ("timm:efficientformerv2_s0", IMAGE),
        "timm:ghostnet_050",
        "timm:mobilevit_xxs",
        ("torchvision:mobilenet_v3_small", 64),
        "timm:edgenext_xx_small",
        "timm:test_efficientnet_ln",
        "timm:starnet_s1",
    ],
}


def place(entry, classes):
    """A network of a ring: its name, the side of its images, and itself."""
    name, more = entry if isinstance(entry, tuple) else (entry, {})
    arguments = more if isinstance(more, dict) else {}
    size = more if isinstance(more, int) else arguments.get("img_size", SIZE)
    return name, size, untrained(name, classes, **arguments)


def test_the_sweep_has_forty_networks():
    assert len({str(entry) for ring in RINGS.values() for entry in ring}) >= 40


@pytest.mark.sweep
@pytest.mark.parametrize("classes", RINGS)
@pytest.mark.filterwarnings("ignore")
def test_every_term_learns_in_every_pair_of_a_ring(classes, planned_once, one_thread):
    torch.manual_seed(0)
    ring = [place(entry, classes) for entry in RINGS[classes]]
    found = []
    for number, student in enumerate(ring):
        teacher = ring[(number + 1) % len(ring)]
        pair = f"{student[0]} from {teacher[0]}"
        # Two images have but one distance, which is all distances' mean.
        found += [f"{pair}: {fault}" for fault in try_pair(student, teacher, classes, 3 + number % 3, planned_once)]
    assert not found, "\n".join(found)


def try_pair(student, teacher, classes, batch, plan):
    """What is wrong with the terms on two networks; each network answers once, and all terms look at these answers."""
    names, sizes, networks = zip(student, teacher, strict=True)
    plans = [plan(network, size, name) for name, size, network in (student, teacher)]
    printed = describe_pair(plans[1], plans[0])
    assert all(name in printed for name in names)
    before = [layout(network) for network in networks]
    needs = reduce(or_, (options.needs for options in TERMS.values()))
    pair = pair_networks(*networks, needs, sizes[0], names, sizes[1])
    margins = [None if norm is None else bn_margin(*norm) for norm in pair.norms(networks[1])]
    run = TermContext(labels=np.arange(IMAGES) // 2 % classes, classes=classes, epochs=2)
    context = pair_context(pair, margins, run)
    generator = torch.Generator().manual_seed(batch)
    images = [torch.randn(batch, 3, size, size, generator=generator) for size in sizes]
    extractors = [
        FeatureExtractor(network, nn.Identity(), party.taps, pair.sizes, False, needs.unpooled)
        for network, party in zip(networks, (pair.student, pair.teacher), strict=True)
    ]
    # By its first running statistics, an untrained network may answer all images alike.
    answers = Teacher(extractors[1], "batch")(images[1])
    networks[0].train().requires_grad_(True)
    student_outputs = extractors[0](images[0])
    for party in (pair.student, pair.teacher):
        party.taps.remove()
    assert [layout(network) for network in networks] == before
    assert torch.equal(networks[1](images[1]), answers.logits_BC)

    if batch % 2:
        student_outputs, answers = student_outputs.each(oblong), answers.each(oblong)
    inputs = Leaves(student_outputs, answers, context.labels, batch)
    told = faults(lambda term: learn(term, inputs, context))
    inputs.into_network()
    told += [
        f"the gradient of {name} is not finite"
        for name, weight in networks[0].named_parameters()
        if weight.grad is not None and not weight.grad.isfinite().all()
    ]
    networks[0].zero_grad(set_to_none=True)
    return told


def layout(network):
    return [(name, type(module)) for name, module in network.named_modules()], sorted(network.state_dict())


def oblong(tensor):
    """A map of two pixels a side or more without its last column."""
    return tensor[..., :-1] if tensor.ndim == 4 and tensor.shape[3] > 1 else tensor


class Leaves:
    """A student's answers, cut off from it, so that each term's gradient stops there; the sum goes into it once."""

    def __init__(self, student, teacher, labels, batch):
        self.made = []
        self.student = student.each(self._leaf)
        self.other = Outputs(student.logits_BC.detach().flip(0).requires_grad_())
        self.indices = torch.arange(batch)
        self.target = torch.from_numpy(labels)[self.indices]
        self.view = View(self.other, teacher.each(lambda tensor: tensor.flip(0)))
        self.teacher = teacher

    def _leaf(self, tensor):
        leaf = tensor.detach().requires_grad_()
        self.made.append((tensor, leaf))
        return leaf

    def inputs(self, target, head=None):
        student = self.student if head is None else self.student._replace(logits_BC=head[0], head=head[1])
        return StepInputs(student, target, self.teacher, indices_B=self.indices, view=self.view)

    def gradients(self):
        return [leaf.grad for leaf in (self.other.logits_BC, *(leaf for _, leaf in self.made)) if leaf.grad is not None]

    def forget(self):
        """Set the gradients of one term aside, and make room for the next's."""
        for _, leaf in self.made:
            if leaf.grad is not None:
                leaf.total = getattr(leaf, "total", 0) + leaf.grad
                leaf.grad = None
        self.other.logits_BC.grad = None

    def into_network(self):
        given = [(tensor, leaf.total) for tensor, leaf in self.made if hasattr(leaf, "total") and tensor.requires_grad]
        torch.autograd.backward(*map(list, zip(*given, strict=True)))


def learn(name, leaves, context):
    """What is wrong with a term's value and gradients; None if nothing is."""
    config = legal(name, context.classes)
    objective = build_objective(config, context)
    heads = [head for _, term in objective.each() if (head := term.head(context)) is not None]
    made = [head(Features(averaged=leaves.student.averaged)) for head in heads]
    inputs = leaves.inputs(targets(config, leaves.target, context.classes), *made)
    with torch.no_grad():
        objective.begin_epoch(0, lambda limit: [inputs])
    value = objective(inputs)["loss"]
    value.backward()
    objective.end_step()
    own = [weight.grad for weight in objective.parameters()]
    gradients = leaves.gradients()
    leaves.forget()
    if not value.isfinite():
        return f"is {value}"
    if not all(gradient.isfinite().all() for gradient in gradients):
        return "has gradients that are not finite"
    if not any(gradient.any() for gradient in gradients):
        return "teaches the student nothing"
    if any(gradient is None for gradient in own):
        return "has parameters that are not trained"
    return None


@cache
def legal(name, classes):
    """A term with its defaults; with so few classes that it refuses them, with the options that its line advises."""
    options = dict(OPTIONS.get(name, {}))
    for _ in range(3):
        config = Objective.model_validate({name: options})
        try:
            config.check_classes(classes)
        except UserError as error:
            line = str(error)
            assert "\n" not in line
            key, value = re.search(r"write `(\w+): (\w+)`", line).groups()
            options[key] = float(value)
        else:
            return config
    raise AssertionError(line)


# --- soft labels ------------------------------------------------------------------------------------------------------


MIXED = Recipe.model_validate(
    {
        "epochs": 2,
        "batch": 8,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "preprocess": {"size": SIZE},
        "mix": {"mixup": 0.2},
    }
)


def takes_soft_labels(config):
    try:
        config.check(MIXED)
    except UserError:
        return False
    return True


def targets(config, labels_B, classes):
    """The labels, soft where the term may be shown such."""
    if not takes_soft_labels(config):
        return labels_B
    one_hot = nn.functional.one_hot(labels_B, classes).float()
    return 0.7 * one_hot + 0.3 * one_hot.flip(0)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_takes_soft_labels_or_refuses_them_in_one_line(name):
    config = legal(name, CLASSES)
    try:
        config.check(MIXED)
    except UserError as error:
        assert re.fullmatch(rf"mix: {name} looks at single images .*; write `mix: null`", str(error))  # noqa: PT017
