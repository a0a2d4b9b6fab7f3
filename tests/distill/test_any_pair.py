"""Every term takes a training step with any pair of networks, or says in one line why it cannot.

Whatever is added to ``TERMS`` is tried here without being named.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from distillery.distill.losses.partial_l2 import bn_margin
from distillery.distill.objective import build_objective
from distillery.distill.step import StepInputs
from distillery.distill.student import FeatureExtractor, Learner
from distillery.distill.teacher import Teacher
from distillery.distill.term import pair_context
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.models import create_model
from distillery.models.composite import Composite
from distillery.models.taps import Taps, pair_networks, pairing, plan_taps

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
# These refuse no pair.
UNIVERSAL = {
    *("ce", "kd", "bake", "mgd", "overhaul", "rkd", "crd"),
    *("fitnet", "at", "nst", "vid", "sp", "reviewkd", "masked_generative"),
}


@pytest.fixture
def planned_once(monkeypatch):
    """Plans of networks that many terms tap."""
    plans = {}

    def plan(network, size, name):
        if name not in plans:
            plans[name] = plan_taps(network, size, name)
        return plans[name]

    monkeypatch.setattr(pairing, "plan_taps", plan)


@pytest.mark.parametrize(
    ("student", "teacher"), [pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in PAIRS[:2])) for pair in PAIRS]
)
@pytest.mark.filterwarnings("ignore")
def test_every_term_takes_a_step(student, teacher, planned_once, one_thread):
    torch.manual_seed(0)
    networks = [untrained(name) for name in (student, teacher)]
    faults = []
    for term in TERMS:
        try:
            fault = take_a_step(term, *copy.deepcopy(networks), (student, teacher))
        except UserError as error:
            refused = term not in UNIVERSAL and str(error) and "\n" not in str(error)
            fault = None if refused else f"refused: {error}"
        if fault:
            faults.append(f"{term}: {fault}")
    assert not faults


def untrained(name):
    network = create_model(name, CLASSES, **NETWORKS[name])
    for weight in network.parameters():
        if weight.ndim == 2 and not weight.any():  # a last layer that begins at zero answers all images alike
            nn.init.normal_(weight, std=0.1)
    return network


def take_a_step(name, student, teacher, names):
    """What is wrong with a step of a term, as training takes it; None if nothing is."""
    config = Objective.model_validate({name: OPTIONS.get(name, {})})
    needs, batch = config.needs(), 6 if config.sampling() else 5
    pair = pair_networks(student, teacher, needs, SIZE, names)
    norms = pair.norms(teacher) if needs.margins else []
    margins = [None if norm is None else bn_margin(*norm) for norm in norms]
    context = pair_context(pair, margins, labels=np.arange(IMAGES) // 2 % CLASSES, classes=CLASSES, epochs=2)
    objective = build_objective(config, context)
    taps = pair.student.taps
    for _, term in objective.each():
        head = term.head(context)
        if head is not None:
            student = Composite(student, head, SIZE, names[0])
            taps = Taps(student.network, taps.plan, taps.kinds) if taps is not None else None
    extractor = FeatureExtractor(student, nn.Identity(), taps, pair.sizes, False, needs.unpooled)
    learner = Learner(extractor, objective, partners=needs.partner).train()
    answers = Teacher(
        FeatureExtractor(teacher, nn.Identity(), pair.teacher.taps, pair.sizes, False, needs.unpooled), "eval"
    )
    images, other = torch.randn(2, batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    indices = torch.arange(batch)
    target = torch.from_numpy(context.labels)[indices]
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
