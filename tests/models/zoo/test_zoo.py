"""The networks of the zoo against published facts, and each family at work."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillery.errors import UserError
from distillery.experiment.zoo import ZOO
from distillery.models import create_model
from distillery.models.pretrained.load import classifier_modules
from distillery.models.taps import Taps, plan_taps

FACTS = json.loads((Path(__file__).parents[2] / "golden" / "arch_facts.json").read_text())


def on_meta(name, num_classes, **arguments):
    with torch.device("meta"):
        return create_model(name, num_classes, **arguments)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_parameters_are_as_many_as_listed(name):
    assert count(on_meta(name, 10)) == ZOO[name].parameters


# What other code bases and papers say, with the classes that they say it for.
PUBLISHED = [
    # Contrastive Representation Distillation's networks, 100 classes
    ("cifar_resnet20", 100, {"shortcut": "projection"}, 278_324),
    ("cifar_resnet56", 100, {"shortcut": "projection"}, 861_620),
    ("cifar_resnet8x4", 100, {}, 1_233_540),
    ("cifar_resnet32x4", 100, {}, 7_433_860),
    ("cifar_wrn_16_2", 100, {}, 703_284),
    ("cifar_wrn_40_1", 100, {}, 569_780),
    ("cifar_wrn_40_2", 100, {}, 2_255_156),
    ("cifar_vgg8", 100, {}, 3_965_028),
    ("cifar_vgg13", 100, {}, 9_462_180),
    ("cifar_crd_mobilenet_v2", 100, {}, 812_836),
    ("cifar_crd_shufflenet_v1", 100, {}, 949_258),
    ("cifar_crd_shufflenet_v2", 100, {}, 1_355_528),
    # pytorch-cifar's, 10 classes
    ("cifar_resnet18", 10, {}, 11_173_962),
    ("cifar_resnet50", 10, {}, 23_520_842),
    ("cifar_resnet152", 10, {}, 58_156_618),
    ("cifar_preact_resnet18", 10, {}, 11_171_146),
    ("cifar_resnext29_2x64d", 10, {}, 9_128_778),
    ("cifar_resnext29_32x4d", 10, {}, 4_774_218),
    ("cifar_shufflenet_v2", 10, {}, 1_263_854),
    # less a convolution and its norm that pytorch-cifar builds and never calls
    ("cifar_efficientnet_b0", 10, {}, 3_599_686 - 32 * 32 - 64),
    # less projections where pytorch-cifar has shortcuts between unequal widths, and an expansion by 1
    ("cifar_mobilenet_v2", 10, {}, 2_296_922 - 59_152 - 32 * 32 - 64),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes", "arguments", "expected"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, classes, arguments, expected):
    assert count(on_meta(name, classes, **arguments)) == expected


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("cifar_resnet20", 0.27),
        ("cifar_resnet32", 0.46),
        ("cifar_resnet44", 0.66),
        ("cifar_resnet56", 0.85),
        ("cifar_resnet110", 1.7),
        ("cifar_wrn_28_10", 36.5),
        ("cifar_wrn_40_1", 0.6),
        ("cifar_wrn_40_2", 2.2),
        ("cifar_wrn_16_4", 2.7),
        ("cifar_densenet40", 1.0),
    ],
)
def test_sizes_are_those_of_the_papers(name, millions):
    digits = len(str(millions).partition(".")[2])
    assert round(ZOO[name].parameters / 1e6, digits) == pytest.approx(millions)


# --- the reference systems' own networks -------------------------------------------------------------------------

BAKE = {
    "resnet50": "BAKE-R-50-1x64d_dds_8gpu.yaml",
    "resnet101": "BAKE-R-101-1x64d_dds_8gpu.yaml",
    "resnet152": "BAKE-R-152-1x64d_dds_8gpu.yaml",
    "resnest50d": "BAKE-S-50_dds_8gpu.yaml",
    "resnest101e": "BAKE-S-101_dds_8gpu.yaml",
    "resnext101_32x4d": "BAKE-X-101-32x4d_dds_8gpu.yaml",
    "resnext152_32x4d": "BAKE-X-152-32x4d_dds_8gpu.yaml",
    "mobilenet_v2": "BAKE-M-V2-W1_dds_4gpu.yaml",
    "torchvision:efficientnet_b0": "BAKE-EN-B0_dds_8gpu.yaml",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BAKE)
def test_bakes_networks_for_imagenet(name):
    fact, network = FACTS["bake_imagenet"][BAKE[name]], on_meta(name, 1000)
    assert count(network) == fact["params"]
    assert sum(isinstance(module, _BatchNorm) for module in network.modules()) == fact["bn"]
    assert count_vectors(network) == fact["dim1_params"]
    assert last_layer(network).in_features == fact["feat_dim"]


def count_vectors(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.ndim == 1)


def last_layer(network):
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("cifar_bake_resnet18", "CIFAR_ResNet18"),
        ("cifar_densenet121", "CIFAR_DenseNet121"),
        ("resnet18", "resnet18"),
        ("densenet121", "densenet121"),
    ],
)
def test_bakes_networks_for_small_data(name, fact):
    fact = FACTS["bake_small"][fact]
    network = on_meta(name, fact["num_classes"])
    assert count(network) == fact["params"]
    assert sum(isinstance(module, _BatchNorm) for module in network.modules()) == fact["bn"]
    assert plan_taps(network, ZOO[name].input_size if name in ZOO else 224).features == fact["feat_dim"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("resnet152", "resnet152"),
        ("mobilenet_v1", "mobilenet_v1"),
        ("mgd_mobilenet_v2", "mobilenet_v2"),
        ("mgd_shufflenet_v2", "shufflenet_v2"),
        ("shufflenet_v2_x1_0", "shufflenet_v2"),
    ],
)
def test_mgds_networks(name, fact):
    fact, network = FACTS["mgd"][fact], on_meta(name, 1000)
    assert count(network) == fact["params"]
    assert sum(isinstance(module, _BatchNorm) for module in network.modules()) == fact["bn"]
    points = plan_taps(network, 224).points
    assert [[point.channels, point.height, point.width] for point in points] == fact["feat_shapes"]


USI = [
    ("resnet50", 25.6), ("tresnet_m", 31.4), ("tresnet_l", 56.0), ("tresnet_v2_l", 46.2),
    ("mobilenetv3_large_100", 5.5), ("levit_384", 39.1), ("levit_256", 18.9), ("edgenext_small", 5.6),
    ("regnety_032", 19.4), ("vit_small_patch16_224", 22.1), ("swin_small_patch4_window7_224", 49.6),
    ("tnt_s_patch16_224", 23.8),
    ("mixer_b16_224", 59.9), ("resmlp_12_224", 15.4), ("convnext_small", 50.2), ("efficientnet_b0", 5.3),
    ("efficientnet_b2", 9.1), ("efficientnet_b3", 12.2), ("ofa_595m", 9.1), ("levit_768", 153.2),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "millions"), USI)
def test_usis_networks_are_here_by_plain_names(name, millions):
    assert count(on_meta(name, 1000)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.slow
def test_ofa_595m_bears_its_operations_in_its_name():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
        create_model("ofa_595m", 1000).eval()(torch.zeros(1, 3, 236, 236))
    assert round(counter.get_total_flops() / 2e6) == 595


@pytest.mark.slow
def test_levit_768_is_levit_384_with_every_width_doubled():
    ours, timms = on_meta("levit_768", 1000).state_dict(), on_meta("levit_384", 1000).state_dict()
    assert ours.keys() == timms.keys()
    for name, weight in timms.items():
        fixed = {1000, 3} if name.startswith(("head", "stem.conv1")) else set()
        if "attention_bias" in name:  # one line a head, one column an offset
            expected = (2 * weight.shape[0], *weight.shape[1:])
        else:
            expected = tuple(side if side in fixed or i > 1 else 2 * side for i, side in enumerate(weight.shape))
        assert tuple(ours[name].shape) == expected, name


def test_both_heads_of_levit_768_are_its_last_layer():
    assert classifier_modules(on_meta("levit_768", 10)) == ("head.linear", "head_dist.linear")


# --- each family at work -----------------------------------------------------------------------------------------

FAMILIES = [
    *("cifar_resnet8", "cifar_resnet8x4", "cifar_wrn_16_1", "cifar_vgg8", "cifar_resnet18", "cifar_preact_resnet18"),
    *("cifar_bake_resnet18", "cifar_resnext29_32x4d", "cifar_densenet40", "cifar_densenet121", "cifar_efficientnet_b0"),
    *("cifar_crd_mobilenet_v2", "cifar_crd_shufflenet_v1", "cifar_crd_shufflenet_v2"),
    *("cifar_mobilenet_v2", "cifar_shufflenet_v2", "mobilenet_v1", "mgd_mobilenet_v2", "mgd_shufflenet_v2", "ofa_595m"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns_with_every_parameter(name):
    torch.manual_seed(0)
    network = create_model(name, 10)
    size = 16 if ZOO[name].input_size == 32 else 64
    logits = network(torch.randn(4, 3, size, size))
    assert logits.shape == (4, 10)
    logits.logsumexp(dim=1).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ZOO if name.startswith(("cifar_", "mgd_", "ofa_", "levit_", "mobilenet_"))]
)
def test_every_network_of_the_zoo_is_tapped_by_the_table(name):
    plan = plan_taps(on_meta(name, 10), ZOO[name].input_size, name)
    assert plan.found == ("feature_info" if name in ("ofa_595m", "levit_768") else "table")
    assert len(plan.points) in (3, 4)
    heights = [point.height for point in plan.points]
    assert heights == sorted(heights, reverse=True)
    if not name.startswith(("cifar_preact", "cifar_bake", "levit")):
        assert all(point.norms for point in plan.points[1:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("levit_768", ["768@14x14", "1024@7x7", "1536@4x4"]),
        ("cifar_resnet8x4", ["64@32x32", "128@16x16", "256@8x8"]),
        ("cifar_vgg8", ["128@16x16", "256@8x8", "512@4x4", "512@4x4"]),
        ("cifar_resnet18", ["64@32x32", "128@16x16", "256@8x8", "512@4x4"]),
        ("cifar_resnext29_32x8d", ["512@32x32", "1024@16x16", "2048@8x8"]),
        ("cifar_preact_resnet50", ["256@32x32", "512@16x16", "1024@8x8", "2048@4x4"]),
        ("cifar_densenet40", ["160@32x32", "304@16x16", "448@8x8"]),
        ("cifar_densenet121", ["256@32x32", "512@16x16", "1024@8x8", "1024@4x4"]),
        ("cifar_efficientnet_b0", ["24@16x16", "40@8x8", "112@4x4", "320@2x2"]),
        ("cifar_mobilenet_v2", ["144@16x16", "192@8x8", "384@8x8", "960@4x4"]),
        ("cifar_shufflenet_v2", ["24@32x32", "116@16x16", "232@8x8", "464@4x4"]),
        ("cifar_crd_mobilenet_v2", ["12@16x16", "16@8x8", "48@4x4", "160@2x2"]),
        ("cifar_crd_shufflenet_v1", ["240@16x16", "480@8x8", "960@4x4"]),
        ("cifar_crd_shufflenet_v2", ["116@16x16", "232@8x8", "464@4x4"]),
    ],
)
def test_stages_end_where_the_resolution_falls(name, shapes):
    assert [point.shape for point in plan_taps(on_meta(name, 10), ZOO[name].input_size).points] == shapes


def test_wide_resnets_are_tapped_behind_the_norm_that_follows_a_stage():
    """Heo et al. 2019 tap Wide ResNets there, because a ReLU follows that norm."""
    network = create_model("cifar_wrn_16_1", 10)
    plan = plan_taps(network, 32)
    norms = ["stages.1.blocks.0.norm1", "stages.2.blocks.0.norm1", "norm"]
    assert [point.norms for point in plan.points] == [(norm,) for norm in norms]
    assert [point.shape for point in plan.points] == ["16@32x32", "32@16x16", "64@8x8"]


@pytest.mark.slow
def test_the_last_stage_is_tapped_after_its_activation_where_the_reference_overwrote_it():
    torch.manual_seed(0)
    compat = create_model("mgd_shufflenet_v2", 10, inplace_relu_compat=True).eval()
    fixed = create_model("mgd_shufflenet_v2", 10).eval()
    fixed.load_state_dict(compat.state_dict())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(compat(images), fixed(images))
        maps = {}
        for name, network in (("compat", compat), ("fixed", fixed)):
            with Taps(network, plan_taps(network, 64)).record() as features:
                network(images)
            maps[name] = features.stages
    assert maps["fixed"][3].min() < 0
    assert torch.equal(maps["compat"][3], maps["fixed"][3].relu())
    assert all(torch.equal(one, other) for one, other in zip(maps["compat"][:3], maps["fixed"][:3], strict=True))


def test_bakes_penultimate_features_may_be_negative():
    torch.manual_seed(0)
    network = create_model("cifar_bake_resnet18", 10).eval()
    with torch.no_grad(), Taps(network, plan_taps(network, 16)).record() as features:
        network(torch.randn(2, 3, 16, 16))
    assert features.embedding.shape == (2, 512)
    assert features.embedding.min() < 0


def test_a_wide_resnet_computes_what_the_paper_says():
    """Written out with functions, from the state dict alone."""
    torch.manual_seed(0)
    network = create_model("cifar_wrn_16_2", 10).double()
    network.train()(torch.randn(8, 3, 16, 16).double())
    state = network.eval().state_dict()

    def norm(feature, name):
        values = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(feature, *values, eps=1e-5))

    images = torch.randn(3, 3, 16, 16).double()
    feature = F.conv2d(images, state["stem.conv.weight"], padding=1)
    for stage in range(3):
        for block in range(2):
            name, stride = f"stages.{stage}.blocks.{block}", 2 if stage > 0 and block == 0 else 1
            active = norm(feature, f"{name}.norm1")
            inner = F.conv2d(active, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(norm(inner, f"{name}.norm2"), state[f"{name}.conv2.weight"], padding=1)
            if block == 0:
                feature = F.conv2d(active, state[f"{name}.downsample.conv.weight"], stride=stride)
            feature = feature + inner
    pooled = norm(feature, "norm").mean(dim=(2, 3))
    expected = pooled @ state["head.fc.weight"].flatten(1).T + state["head.fc.bias"]
    assert torch.allclose(network(images), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("cifar_resnet8", {"shortcut": "conv"}, r"model_args\.shortcut: 'conv' is not valid; give pad or projection"),
        ("cifar_resnet8", {"stem_width": 4}, r"model_args\.stem_width: only shortcut: projection"),
        ("cifar_densenet40", {"stem_width": 0}, r"model_args\.stem_width: 0 is not valid; give 1 or more"),
        ("cifar_resnet8x4", {"width": 4}, r"model_args\.width: cannot be set here; the model's name"),
        ("cifar_efficientnet_b0", {"dropuot": 0.1}, r"cifar_efficientnet_b0 has no argument 'dropuot'; .* 'dropout'"),
        ("mgd_shufflenet_v2", {"inplace": True}, r"has no argument 'inplace'; valid: inplace_relu_compat"),
    ],
)
def test_wrong_arguments_are_one_line(name, arguments, line):
    with pytest.raises(UserError, match=line) as caught:
        create_model(name, 10, **arguments)
    assert "\n" not in str(caught.value)
