"""Where taps lie: against published facts, timm's own features, and by hand."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from distillery.models import create_model
from distillery.models.taps import TapError, Taps, norm_affine, plan_taps, trace
from distillery.models.taps.trace import trace_network

GOLDEN = Path(__file__).parents[2] / "golden" / "arch_facts.json"


@pytest.mark.parametrize(
    "name",
    [
        "cifar_resnet20",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("cifar_preact_resnet18", "cifar_densenet40", "cifar_crd_shufflenet_v1", "cifar_mobilenet_v2")
        ),
    ],
)
def test_a_small_network_has_the_plan_that_it_would_have_without_memory(monkeypatch, name):
    monkeypatch.setattr(trace, "SMALL_NETWORK", 10**8)
    network = create_model(name, 10)
    there = plan_taps(network, 32)
    monkeypatch.setattr(trace, "SMALL_IMAGE", 0)
    assert plan_taps(network, 32) == there


@pytest.fixture(scope="module")
def facts():
    return json.loads(GOLDEN.read_text())["mgd"]


def on_meta(name, num_classes=1000, **arguments):
    with torch.device("meta"):
        return create_model(name, num_classes, **arguments)


def shapes(plan):
    return [[point.channels, point.height, point.width] for point in plan.points]


def record(network, plan, images):
    with torch.no_grad(), Taps(network, plan).record() as features:
        network.eval()(images)
    return features


# --- the table ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fact", "last_norm"),
    [
        ("torchvision:resnet18", "resnet18", "layer4.1.bn2"),
        ("torchvision:resnet50", "resnet50", "layer4.2.bn3"),
        ("torchvision:resnet152", "resnet152", "layer4.2.bn3"),
        ("timm:resnet50", "resnet50", "layer4.2.bn3"),
        ("timm:mobilenetv1_100", "mobilenet_v1", "blocks.4.1.bn2"),
        ("mobilenet_v1", "mobilenet_v1", "blocks.4.1.bn2"),
        ("mgd_shufflenet_v2", "shufflenet_v2", "stage4.3.branch2.6"),
        ("mgd_mobilenet_v2", "mobilenet_v2", "features.17.conv.1.1"),
        ("torchvision:shufflenet_v2_x1_0", "shufflenet_v2", "stage4.3.branch2.6"),
    ],
)
def test_taps_agree_with_the_reference_networks(facts, name, fact, last_norm):
    network = on_meta(name)
    plan = plan_taps(network, 224, name)
    assert plan.found == "table"
    assert shapes(plan) == facts[fact]["feat_shapes"]
    assert plan.points[-1].norms[-1] == last_norm
    for point, channels in zip(plan.points[1:], facts[fact]["bn_channels"][1:], strict=True):
        assert network.get_submodule(point.norms[-1]).num_features == channels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("torchvision:mobilenet_v2", "features.7.conv.1.0", "features.11.conv.1.0"),
        ("timm:mobilenetv2_100", "blocks.3.0.conv_dw", "blocks.4.0.conv_dw"),
    ],
)
def test_mobilenet_v2_is_tapped_after_its_depthwise_convolutions(facts, name, first, second):
    network = on_meta(name)
    assert shapes(plan_taps(network, 224, name)) == [[144, 28, 28], [192, 14, 14], [384, 14, 14], [960, 7, 7]]
    # The reference network strides one stage later than torchvision's and timm's.
    network.get_submodule(first).stride = (1, 1)
    network.get_submodule(second).stride = (2, 2)
    plan = plan_taps(network, 224, name)
    assert shapes(plan) == facts["mobilenet_v2"]["feat_shapes"]
    assert [point.activation for point in plan.points] == ["relu6"] * 4
    for point, channels in zip(plan.points, facts["mobilenet_v2"]["bn_channels"], strict=True):
        assert network.get_submodule(point.norms[0]).num_features == channels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels", "sides", "activation", "features"),
    [
        ("timm:resnext50_32x4d", [256, 512, 1024, 2048], [56, 28, 14, 7], "relu", 2048),
        ("timm:wide_resnet50_2", [256, 512, 1024, 2048], [56, 28, 14, 7], "relu", 2048),
        ("timm:resnest50d", [256, 512, 1024, 2048], [56, 28, 14, 7], "relu", 2048),
        ("timm:efficientnet_b0", [24, 40, 112, 320], [56, 28, 14, 7], None, 1280),
        ("torchvision:efficientnet_b0", [24, 40, 112, 320], [56, 28, 14, 7], None, 1280),
        ("torchvision:efficientnet_v2_s", [48, 64, 160, 256], [56, 28, 14, 7], None, 1280),
        ("timm:densenet121", [256, 512, 1024, 1024], [56, 28, 14, 7], "relu", 1024),
        ("torchvision:densenet121", [256, 512, 1024, 1024], [56, 28, 14, 7], "relu", 1024),
        ("cifar_resnet56", [16, 32, 64], [224, 112, 56], "relu", 64),
    ],
)
def test_the_table_knows_the_other_families(name, channels, sides, activation, features):
    plan = plan_taps(on_meta(name), 224, name)
    assert plan.found == "table"
    assert shapes(plan) == [[c, side, side] for c, side in zip(channels, sides, strict=True)]
    assert {point.activation for point in plan.points} == {activation}
    assert all(point.norms for point in plan.points)
    assert plan.features == features
    assert plan.embedding.side == "input"


# --- the tensors -------------------------------------------------------------------------------------------------


def test_a_residual_stage_is_tapped_at_the_sum_before_its_activation():
    network = create_model("torchvision:resnet18", 5)
    plan = plan_taps(network, 64)
    images = torch.randn(2, 3, 64, 64)
    features = record(network, plan, images)
    with torch.no_grad():
        stem = network.layer1[0](network.maxpool(network.relu(network.bn1(network.conv1(images)))))
        block = network.layer1[1]
        branch = block.bn2(block.conv2(block.relu(block.bn1(block.conv1(stem)))))
        assert torch.equal(features.stages[0], branch + stem)
    assert features.stages[0].min() < 0


def test_a_shufflenet_stage_is_tapped_before_the_activations_of_all_its_units():
    network = create_model("torchvision:shufflenet_v2_x0_5", 5)
    plan = plan_taps(network, 64)
    images = torch.randn(2, 3, 64, 64)
    features = record(network, plan, images)

    def shuffled(parts):
        joined = torch.cat(parts, dim=1)
        batch, channels, height, width = joined.shape
        return joined.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(joined.shape)

    with torch.no_grad():
        activated = network.maxpool(network.conv1(images))
        for stage, tap in zip((network.stage2, network.stage3, network.stage4), features.stages[1:], strict=True):
            expected = None
            for unit in stage:
                if expected is None:
                    expected = shuffled([unit.branch1[:-1](activated), unit.branch2[:-1](activated)])
                else:
                    kept, read = expected.chunk(2, dim=1)
                    expected = shuffled([kept, unit.branch2[:-1](read.relu())])
            activated = stage(activated)
            assert torch.equal(tap, expected)
            assert torch.equal(tap.relu(), activated)
            assert tap.min() < 0


def test_a_pre_activation_network_is_tapped_after_the_norm_that_follows_the_stage():
    network = create_model("timm:resnetv2_18", 5).eval()
    features = record(network, plan_taps(network, 64), images := torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        raw = network.stages[0](network.stem(images))
        norm = network.stages[1].blocks[0].norm1
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        by_hand = (raw - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
    torch.testing.assert_close(features.stages[0], by_hand)


@pytest.mark.slow
def test_a_dense_stage_is_tapped_after_the_norm_of_its_transition():
    network = create_model("torchvision:densenet121", 5).eval()
    plan = plan_taps(network, 64)
    features = record(network, plan, images := torch.randn(2, 3, 64, 64))
    with torch.no_grad():
        raw = network.features[:5](images)
        assert torch.equal(features.stages[0], network.features.transition1.norm(raw))
        assert torch.equal(features.stages[3], network.features(images))
        assert torch.equal(features.embedding, network.features(images).relu().mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "arguments", "indices"),
    [
        ("timm:test_vit", 64, {"img_size": 64}, [1, 2, 3, 5]),
        ("timm:vit_tiny_patch16_dinov3_qkvb", 64, {"img_size": 64, "depth": 4}, [0, 1, 2, 3]),
        ("timm:swin_tiny_patch4_window7_224", 64, {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 2, 1)}, 4),
        ("timm:test_mambaout", 64, {}, 4),
        ("timm:test_convnext", 64, {}, 4),
        ("timm:efficientnet_b0", 64, {}, 4),
        ("timm:resnet10t", 64, {}, 4),
    ],
)
def test_maps_are_what_timm_calls_intermediate_features(name, size, arguments, indices):
    network = create_model(name, 5, **arguments)
    plan = plan_taps(network, size)
    images = torch.randn(2, 3, size, size)
    features = record(network, plan, images)
    with torch.no_grad():
        expected = network.forward_intermediates(
            images, indices=indices, norm=False, output_fmt="NCHW", intermediates_only=True
        )
    for point, tap, intermediate in zip(plan.points, features.stages, expected, strict=True):
        assert torch.equal(tap.relu() if point.activation == "relu" else tap, intermediate)


# --- margins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "torchvision:googlenet", "timm:resnet10t"])
def test_scales_and_shifts_stand_in_the_order_of_the_channels(name):
    arguments = {"aux_logits": False, "init_weights": False} if "googlenet" in name else {}
    network = create_model(name, 5, **arguments).eval()
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            # With convolutions that give zero, what leaves a norm is its scale plus its shift, whatever the images.
            module.running_mean.fill_(-1)
            module.running_var.fill_(1 - module.eps)
            module.weight.data.copy_(torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(torch.randn(module.num_features, generator=generator))
    plan = plan_taps(network, 64)
    features = record(network, plan, torch.randn(2, 3, 64, 64))
    margins = 0
    for point, tap in zip(plan.points, features.stages, strict=True):
        affine = norm_affine(network, point)
        if affine is None or "resnet" in name:
            continue
        margins += 1
        torch.testing.assert_close(tap[0, :, 0, 0], affine[0] + affine[1])
    if "resnet" in name:
        gamma, beta = norm_affine(network, plan.points[0])
        assert torch.equal(gamma, network.layer1[0].bn2.weight)
        assert torch.equal(beta, network.layer1[0].bn2.bias)
    else:
        assert margins >= 3


def test_the_shortcuts_norm_is_no_margin():
    class Block(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), last)
            self.shortcut = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
            self.act = nn.ReLU()

        def forward(self, x):
            return self.act(self.shortcut(x) + self.branch(x))

    def network(last):
        return nn.Sequential(nn.Conv2d(3, 4, 3), Block(last), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))

    (own,) = plan_taps(network(nn.BatchNorm2d(4, affine=False)), 16).points
    assert own.norms == ("1.branch.3",)
    gamma, beta = norm_affine(network(nn.BatchNorm2d(4, affine=False)), own)
    assert gamma.tolist() == [1] * 4
    assert beta.tolist() == [0] * 4
    (none,) = plan_taps(network(nn.Sigmoid()), 16).points
    assert none.norms is None
    assert norm_affine(network(nn.Sigmoid()), none) is None


# --- any network -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:googlenet", "timm:test_vit", "timm:dla46x_c"])
def test_the_trunk_is_what_every_path_leads_through(name):
    trace = trace_network(on_meta(name, init_weights=False) if "google" in name else on_meta(name), 160)

    def reaches_logits_without(value):
        seen = {trace.images}
        for op in trace.ops:
            if any(item in seen for item in op.inputs):
                seen.update(item for item in op.outputs if item != value)
        return trace.logits in seen

    values = [value for op in trace.ops for value in op.outputs if value in trace.from_images and value != trace.logits]
    every_path = [value for value in dict.fromkeys(values) if not reaches_logits_without(value)]
    assert [value for value in trace.trunk if value != trace.logits] == every_path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:resnet50", "timm:mobilenetv1_100", "timm:densenet121", "timm:efficientnet_b0"])
def test_tracing_alone_finds_what_the_table_says(name):
    network = on_meta(name)
    expected = plan_taps(network, 224)

    class Unknown(nn.Module):
        """The same network where neither its class nor its lists help."""

        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, images):
            return self.inner(images) * 1

    wrapped = Unknown()
    wrapped.scale = nn.Identity()
    plan = plan_taps(wrapped, 224)
    assert plan.found == "traced"
    assert shapes(plan) == shapes(expected)
    assert [point.norms for point in plan.points] == [
        tuple(f"inner.{norm}" for norm in point.norms) for point in expected.points
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torchvision:mobilenet_v3_small", {"features.1": 16, "features.3": 24, "features.8": 48, "features.12": 576}),
        ("torchvision:swin_t", {"features.1": 96, "features.3": 192, "features.5": 384, "features.7": 768}),
        ("torchvision:vit_b_16", {f"encoder.layers.encoder_layer_{block}": 768 for block in (2, 5, 8, 11)}),
        ("torchvision:alexnet", {"features.1": 64, "features.4": 192, "features.11": 256}),
        ("timm:hrnet_w18_small", {"layer1": 128, "final_layer": 2048}),
    ],
)
def test_traced_stages_end_with_whole_blocks(name, expected):
    plan = plan_taps(on_meta(name), 224, name)
    assert plan.found == "traced"
    assert {point.name: point.channels for point in plan.points} == expected


def test_an_update_in_place_reaches_the_views_of_its_memory():
    class ThroughAView(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4 * 36, 2)

        def forward(self, images):
            feature = self.conv(images)
            flat = feature.flatten(1)
            feature.relu_()
            return self.fc(flat)

    trace = trace_network(ThroughAView(), 8)
    assert "relu_" in [trace.maker(value).name for value in trace.trunk]


def test_synchronised_batch_norms_are_margins_too():
    plain = create_model("cifar_resnet8", 5)
    plan = plan_taps(plain, 32)
    assert plan_taps(nn.SyncBatchNorm.convert_sync_batchnorm(plain), 32) == plan


def test_planning_leaves_the_network_as_it_is():
    network = create_model("cifar_resnet8", 5).train()
    before = copy.deepcopy(network.state_dict())
    plan_taps(network, 32)
    assert network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert next(network.parameters()).device.type == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.DataParallel(create_model("cifar_resnet8", 5)), "not on DataParallel around it"),
        (lambda: torch.compile(create_model("cifar_resnet8", 5), backend="eager"), "not on OptimizedModule around it"),
        (lambda: on_meta("timm:deit_tiny_patch16_224"), r"net: cannot run on images of 32 x 32 pixels \(.*224"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 9), nn.ReLU(), nn.Linear(9, 2)), "no feature maps"),
        (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), "no feature maps"),
        (lambda: nn.Sequential(nn.LayerNorm([3, 32, 32]), nn.AdaptiveAvgPool2d(1), nn.Flatten()), "no linear layer"),
    ],
)
def test_what_cannot_be_tapped_is_one_line(network, message):
    with pytest.raises(TapError, match=message) as raised:
        plan_taps(network(), 32, "net")
    assert "\n" not in str(raised.value)
