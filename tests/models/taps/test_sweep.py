"""One small member of every family of timm and torchvision, at small inputs: tapped, as student and as teacher."""

import pytest
import torch
from torch import nn

from distillery.distill.assembly import Side, TeacherSide, assemble
from distillery.distill.step import StepInputs
from distillery.distill.term import TermContext
from distillery.experiment import load_experiments
from distillery.experiment.rehearsal import family
from distillery.experiment.schema.objective import Objective
from distillery.models import create_model
from distillery.models.taps import Taps, describe_pair, plan_taps
from distillery.models.taps.recording import PLAIN_ACTIVATIONS

EVERY_KIND = frozenset({"stages", "activations", "raw", "tokens", "embedding"})

TIMM = {
    # plain and residual convolutions
    "test_resnet": {}, "resnet10t": {}, "resnest14d": {}, "res2net50_14w_8s": {}, "skresnet18": {},
    "legacy_seresnet18": {}, "resnetv2_18": {}, "test_byobnet": {}, "test_nfnet": {}, "nf_regnet_b0": {},
    "regnetx_002": {}, "regnety_002": {}, "regnetz_005": {}, "tresnet_m": {}, "tresnet_v2_l": {}, "dla46x_c": {},
    "dpn48b": {}, "densenet121": {}, "ese_vovnet19b_slim_dw": {}, "cs3darknet_focus_s": {}, "cspnext_tiny": {},
    "selecsls42": {}, "hrnet_w18_small": {}, "hgnetv2_b0": {}, "rdnet_tiny": {}, "vgg11_bn": {}, "gernet_s": {},
    "repvgg_a0": {}, "legacy_xception": {"size": 96}, "xception41p": {"size": 96},
    "inception_v3": {"size": 128, "aux_logits": False}, "inception_v4": {"size": 128}, "mobileone_s0": {},
    # mobile convolutions
    "mobilenetv1_100": {}, "mobilenetv2_100": {}, "mobilenetv3_small_050": {}, "mobilenetv4_conv_small": {},
    "efficientnet_b0": {}, "efficientnet_lite0": {}, "test_efficientnet": {}, "mixnet_s": {}, "mnasnet_small": {},
    "fbnetc_100": {}, "spnasnet_100": {}, "tinynet_e": {}, "semnasnet_075": {}, "hardcorenas_b": {}, "lcnet_050": {},
    "lcnetv2_small": {}, "ghostnet_050": {}, "ghostnetv2_100": {}, "repghostnet_050": {}, "rexnet_100": {},
    "fasternet_t0": {}, "starnet_s050": {}, "shvit_s1": {}, "repvit_m1": {}, "iformer_t": {},
    # convolutions after the transformer's fashion, and hybrids
    "test_convnext": {}, "inception_next_atto": {}, "convmixer_768_32": {}, "poolformerv2_s12": {}, "test_mambaout": {},
    "focalnet_tiny_srf": {}, "edgenext_xx_small": {}, "efficientvit_b0": {}, "efficientvit_m0": {"img_size": 128},
    "efficientvim_m1": {"size": 128}, "fastvit_t8": {}, "mobilevit_xxs": {}, "mobilevitv2_050": {},
    "test_coatnet": {"img_size": 64}, "nextvit_small": {}, "swiftformer_xs": {"size": 224},
    "efficientformer_l1": {"size": 224}, "efficientformerv2_s0": {"size": 224}, "visformer_tiny": {"img_size": 64},
    "vit_tiny_r_s16_p8_224": {"img_size": 64}, "levit_128s": {"img_size": 64}, "tiny_vit_5m_224": {},
    # transformers and mixers
    "test_vit": {"img_size": 64}, "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "vit_tiny_patch16_dinov3_qkvb": {"img_size": 64}, "test_vit_relpos": {"img_size": 64},
    "cait_xxs24_224": {"img_size": 64}, "convit_tiny": {"img_size": 64}, "coat_lite_tiny": {"img_size": 64},
    "coat_tiny": {"img_size": 64}, "crossvit_tiny_240": {"size": 240}, "xcit_nano_12_p16_224": {"img_size": 64},
    "tnt_s_legacy_patch16_224": {"img_size": 64}, "gmlp_ti16_224": {"img_size": 64}, "resmlp_12_224": {"img_size": 64},
    "mixer_s32_224": {"img_size": 64}, "pit_ti_224": {"img_size": 64}, "pvt_v2_b0": {}, "davit_tiny": {},
    "gcvit_xxtiny": {"img_size": 64}, "nest_tiny": {"img_size": 64}, "twins_svt_small": {"img_size": 64},
    "swin_tiny_patch4_window7_224": {"img_size": 64}, "swinv2_cr_tiny_224": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64}, "hiera_tiny_224": {"img_size": 64}, "volo_d1_224": {"img_size": 64},
    "vitamin_small_224": {"img_size": 64},
}  # fmt: skip

TORCHVISION = {
    "alexnet": {}, "resnet18": {}, "resnext50_32x4d": {}, "densenet121": {}, "squeezenet1_1": {},
    "googlenet": {"aux_logits": False, "init_weights": False}, "shufflenet_v2_x0_5": {}, "mobilenet_v2": {},
    "mobilenet_v3_small": {}, "mnasnet0_5": {}, "regnet_y_400mf": {}, "efficientnet_b0": {}, "efficientnet_v2_s": {},
    "convnext_tiny": {}, "vit_b_32": {"image_size": 64}, "swin_t": {}, "maxvit_t": {"size": 224},
    "inception_v3": {"size": 128, "aux_logits": False, "init_weights": False},
}  # fmt: skip


ZOO = {
    "cifar_resnet8x4": {"size": 16}, "cifar_wrn_16_1": {"size": 16}, "cifar_vgg8": {"size": 16},
    "cifar_resnet18": {"size": 16}, "cifar_preact_resnet18": {"size": 16}, "cifar_bake_resnet18": {"size": 16},
    "cifar_resnext29_32x4d": {"size": 16}, "cifar_densenet40": {"size": 16}, "cifar_densenet121": {"size": 16},
    "cifar_efficientnet_b0": {"size": 32}, "cifar_mobilenet_v2": {"size": 16}, "cifar_shufflenet_v2": {"size": 16},
    "cifar_pyramidnet110": {"size": 16}, "cifar_crd_mobilenet_v2": {"size": 32},
    "mobilenet_v1": {}, "mgd_mobilenet_v2": {}, "mgd_shufflenet_v2": {"inplace_relu_compat": True}, "ofa_595m": {},
}  # fmt: skip


def build(library, name, arguments):
    arguments = dict(arguments)
    size = arguments.pop("size", arguments.get("img_size", arguments.get("image_size", 64)))
    torch.manual_seed(0)
    if library == "zoo":
        return create_model(name, 5, **arguments), size
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=5, **arguments), size
    import torchvision

    return torchvision.models.get_model(name, num_classes=5, **arguments), size


def test_every_family_of_the_experiments_is_here(request):
    """`make rehearse-recipes` does not try them all."""
    experiments = load_experiments(request.config.rootpath / "config").values()
    models = {line.model for experiment in experiments for line in experiment.config.runs.values()}
    assert {family(model) for model in models} <= {family(name) for name in (*ZOO, *TIMM, *TORCHVISION)}


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("library", "name", "arguments"),
    [
        (library, *item)
        for library, networks in (("zoo", ZOO), ("timm", TIMM), ("torchvision", TORCHVISION))
        for item in networks.items()
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore")
def test_every_family_is_tapped_and_trains_as_student_and_teacher(library, name, arguments):
    network, size = build(library, name, arguments)
    plan = plan_taps(network, size, name)
    images = torch.randn(2, 3, size, size)
    shapes = [(2, point.channels, point.height, point.width) for point in plan.points]
    assert describe_pair(plan, plan).count("\n") == len(plan.points) + 3

    with torch.no_grad():
        expected = network.eval()(images)
    tokens = all(point.layout == "BNC" for point in plan.points)
    taps = Taps(network, plan, EVERY_KIND if tokens else EVERY_KIND - {"tokens"})
    with torch.no_grad(), taps.record() as eval_features:
        logits = network(images)
    assert torch.equal(first(logits), first(expected))
    assert [tuple(feature.shape) for feature in eval_features.stages] == shapes
    assert [tuple(feature.shape) for feature in eval_features.activations] == shapes
    assert [tuple(feature.shape) for feature in eval_features.raw] == shapes
    for point, before, after in zip(plan.points, eval_features.stages, eval_features.activations, strict=True):
        activation = PLAIN_ACTIVATIONS.get(point.activation)
        activated = before if point.activation is None else activation(before) if activation else after
        torch.testing.assert_close(after, activated)
    assert [sequence.ndim for sequence in eval_features.tokens] == [3] * len(plan.points) * tokens
    assert eval_features.embedding.shape == (2, plan.features)
    if plan.classifier is not None:
        assert network.get_submodule(plan.classifier).weight.shape[:2] == (5, plan.features)

    network.train()
    with taps.record() as train_features:
        network(images)
    assert [tuple(feature.shape) for feature in train_features.stages] == shapes
    # A random weight to each element, because a plain sum has no gradient through a norm.
    weights = torch.Generator().manual_seed(0)
    loss = sum(
        (tap * torch.randn(tap.shape, generator=weights)).mean()
        for tap in [*train_features.stages, train_features.embedding]
    )
    loss.backward()
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(tap.requires_grad for tap in [*train_features.stages, train_features.embedding])
    taps.remove()

    take_a_step(network, create_model("cifar_resnet8", 5), images)
    take_a_step(create_model("cifar_resnet8", 5), network, images)


def take_a_step(student, teacher, images):
    """One step of MGD and Overhaul, as training takes it, and finite gradients for everything that is trained."""
    config = Objective.model_validate({"ce": {}, "mgd": {}, "overhaul": {}})
    size = images.shape[-1]
    learner, (answers,), *_ = assemble(
        Side(student, "student", size, nn.Identity()),
        [TeacherSide(teacher, "teacher", size, nn.Identity())],
        config,
        TermContext(),
    )
    learner.train()
    objective = learner.objective
    target = torch.tensor([0, 1])
    with torch.no_grad():
        objective.begin_epoch(0, lambda limit: [StepInputs(learner.extractor(images), target, answers(images))])
    learner.zero_grad()
    teacher.zero_grad()
    values, _ = learner(images, target, answers(images))
    values["loss"].backward()
    gradients = [weight.grad for weight in learner.parameters() if weight.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(weight.grad is not None for weight in objective.parameters())
    assert all(weight.grad is None for weight in teacher.parameters())
    learner.extractor.taps.remove()
    answers.extractor.taps.remove()


def first(output):
    return output[0] if isinstance(output, (tuple, list)) else output
