"""Names of published code bases, and what they are called here."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from distillery.errors import UserError
from distillery.models import create_model
from distillery.models.pretrained.load import fit_names, import_weights

PREACT = {
    "stem.conv.weight": "conv1.weight",
    "stages.0.blocks.1.norm2.running_mean": "layer1.1.bn2.running_mean",
    "stages.1.blocks.0.conv1.weight": "layer2.0.conv1.weight",
    "stages.1.blocks.0.downsample.conv.weight": "layer2.0.shortcut.0.weight",
    "stages.3.blocks.1.norm1.bias": "layer4.1.bn1.bias",
    "head.fc.weight": "linear.weight",
    "head.fc.bias": "linear.bias",
}
NAMES = [
    ("cifar_preact_resnet18", PREACT),
    ("cifar_bake_resnet18", PREACT | {"stem.norm.weight": "bn1.weight", "stem.norm.running_var": "bn1.running_var"}),
    (
        "cifar_wrn_16_2",
        {
            "stem.conv.weight": "conv1.weight",
            "stages.0.blocks.0.norm1.weight": "block1.layer.0.bn1.weight",
            "stages.1.blocks.0.downsample.conv.weight": "block2.layer.0.convShortcut.weight",
            "stages.2.blocks.1.conv2.weight": "block3.layer.1.conv2.weight",
            "norm.running_mean": "bn1.running_mean",
            "head.fc.weight": "fc.weight",
        },
    ),
    (
        "cifar_efficientnet_b0",
        {
            "features.0.0.weight": "conv1.weight",
            "features.0.1.bias": "bn1.bias",
            "features.1.0.block.0.0.weight": "layers.0.conv2.weight",
            "features.1.0.block.1.fc2.bias": "layers.0.se.se2.bias",
            "features.1.0.block.2.1.weight": "layers.0.bn3.weight",
            "features.2.0.block.0.0.weight": "layers.1.conv1.weight",
            "features.4.2.block.1.1.running_var": "layers.7.bn2.running_var",
            "features.7.0.block.2.fc1.weight": "layers.15.se.se1.weight",
            "features.7.0.block.3.0.weight": "layers.15.conv3.weight",
            "classifier.1.weight": "linear.weight",
        },
    ),
    (
        "cifar_vgg8",
        {
            "features.block0.0.weight": "block0.0.weight",
            "features.block4.1.running_mean": "block4.1.running_mean",
            "classifier.bias": "classifier.bias",
        },
    ),
    (
        "cifar_resnext29_32x4d",
        {
            "conv1.weight": "conv1.weight",
            "layer2.0.downsample.1.bias": "layer2.0.shortcut.1.bias",
            "fc.bias": "linear.bias",
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "names"), NAMES)
def test_names_of_published_code_bases_are_known(name, names):
    network = create_model(name, 10)
    for here, there in names.items():
        assert here in network.state_dict()
        assert list(fit_names({there: torch.zeros(())}, network, name)) == [here]


@pytest.mark.slow
def test_weights_that_the_original_never_uses_are_passed_over(tmp_path):
    state = create_model("cifar_efficientnet_b0", 10).state_dict()
    torch.save({**state, "layers.0.conv1.weight": torch.zeros(32, 32, 1, 1)}, tmp_path / "w.pth")
    import_weights(create_model("cifar_efficientnet_b0", 10), str(tmp_path / "w.pth"), "cifar_efficientnet_b0")


@pytest.mark.slow
def test_timms_names_of_the_original_weights_are_used(tmp_path):
    """MIIL's file of TResNet-L V2: the bare names of its first version, and signs of in-place batch norms."""
    with torch.device("meta"):
        own = create_model("tresnet_v2_l", 3).state_dict()
    torch.manual_seed(0)
    state = {name: torch.randn(value.shape).to(value.dtype) for name, value in own.items()}
    state = {name: value.abs() if name.endswith("running_var") else value for name, value in state.items()}
    original = {}
    for name, value in state.items():
        name = re.sub(r"(conv\d+|downsample\.\d+)\.conv\.", r"\1.0.", name)
        name = re.sub(r"(conv\d+|downsample\.\d+)\.bn\.", r"\1.1.", name)
        original[f"module.{name}"] = value
    torch.save({"state_dict": original}, tmp_path / "tresnet.pth")
    network = create_model("tresnet_v2_l", 3)
    import_weights(network, str(tmp_path / "tresnet.pth"), "tresnet_v2_l")
    read = network.state_dict()
    assert torch.equal(read["body.conv1.conv.weight"], state["body.conv1.conv.weight"])
    assert torch.allclose(read["body.conv1.bn.weight"], state["body.conv1.bn.weight"].abs() + 1e-5)


# --- EfficientNet-PyTorch ----------------------------------------------------------------------------------------

# Tan and Le 2019, EfficientNet, table 1: expansion, channels, layers and kernel of each stage, and how a variant scales
# its width and depth.
STAGES = ((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 3, 3), (6, 112, 3, 5), (6, 192, 4, 5), (6, 320, 1, 3))
SCALES = {
    "b0": (1.0, 1.0), "b1": (1.0, 1.1), "b2": (1.1, 1.2), "b3": (1.2, 1.4),
    "b4": (1.4, 1.8), "b5": (1.6, 2.2), "b6": (1.8, 2.6), "b7": (2.0, 3.1),
}  # fmt: skip


def norm(name, channels):
    weights = {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
    return weights | {f"{name}.num_batches_tracked": ()}


def efficientnet_pytorch(variant, classes):
    """Names and shapes of EfficientNet-PyTorch's weights, in its order."""
    wide, deep = SCALES[variant]

    def widened(channels):
        rounded = max(8, int(channels * wide + 4) // 8 * 8)
        return rounded + 8 if rounded < 0.9 * channels * wide else rounded

    inputs = widened(32)
    shapes = {"_conv_stem.weight": (inputs, 3, 3, 3)} | norm("_bn0", inputs)
    number = 0
    for expansion, channels, layers, kernel in STAGES:
        for _ in range(math.ceil(layers * deep)):
            block, inner, squeezed = f"_blocks.{number}.", inputs * expansion, int(inputs * 0.25)
            if expansion > 1:
                shapes |= {f"{block}_expand_conv.weight": (inner, inputs, 1, 1)} | norm(f"{block}_bn0", inner)
            shapes |= {f"{block}_depthwise_conv.weight": (inner, 1, kernel, kernel)} | norm(f"{block}_bn1", inner)
            shapes |= {f"{block}_se_reduce.weight": (squeezed, inner, 1, 1), f"{block}_se_reduce.bias": (squeezed,)}
            shapes |= {f"{block}_se_expand.weight": (inner, squeezed, 1, 1), f"{block}_se_expand.bias": (inner,)}
            inputs = widened(channels)
            shapes |= {f"{block}_project_conv.weight": (inputs, inner, 1, 1)} | norm(f"{block}_bn2", inputs)
            number += 1
    shapes |= {"_conv_head.weight": (widened(1280), inputs, 1, 1)} | norm("_bn1", widened(1280))
    return shapes | {"_fc.weight": (classes, widened(1280)), "_fc.bias": (classes,)}


EFFICIENTNETS = [f"tf_efficientnet_{variant}" for variant in SCALES]
EFFICIENTNETS += ["timm:efficientnet_b0", "timm:efficientnet_b4", "torchvision:efficientnet_b0"]
EFFICIENTNETS += ["torchvision:efficientnet_b3", "torchvision:efficientnet_b7"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_every_weight_of_efficientnet_pytorch_finds_its_place(name):
    """All of them run their layers in one order, so that the n-th weight is the n-th."""
    with torch.device("meta"):
        network = create_model(name, 7)
        theirs = {there: torch.zeros(shape) for there, shape in efficientnet_pytorch(name[-2:], 7).items()}
    own, found = network.state_dict(), fit_names(theirs, network, name)
    assert list(found) == list(own)
    assert [value.shape for value in found.values()] == [value.shape for value in own.values()]


@pytest.mark.slow
def test_blocks_that_the_network_does_not_have_keep_their_names():
    with torch.device("meta"):
        network = create_model("tf_efficientnet_b0", 7)
        theirs = {there: torch.zeros(shape) for there, shape in efficientnet_pytorch("b1", 7).items()}
    found = fit_names(theirs, network, "tf_efficientnet_b0")
    left = {name.rpartition("._")[0] for name in found if name not in network.state_dict()}
    assert {f"_blocks.{number}" for number in range(16, 23)} <= left


# --- dense networks of densenet-pytorch and pytorch-classification ------------------------------------------------

# How the code base calls a layer of a block (both from 1 and 0), and the last norm.
DENSE = {"densenet-pytorch": ("block{}.layer.{}.", "bn1"), "pytorch-classification": ("dense{}.{}.", "bn")}
DEPTH, GROWTH, STEM = 40, 12, 24


def dense_state(codebase, classes):
    """Random weights of DenseNet-40 (k = 12) under the names of a code base."""
    layer, last = DENSE[codebase]
    shapes, channels = {"conv1.weight": (STEM, 3, 3, 3)}, STEM
    for block in (1, 2, 3):
        for number in range((DEPTH - 4) // 3):
            name = layer.format(block, number)
            shapes |= norm(f"{name}bn1", channels) | {f"{name}conv1.weight": (GROWTH, channels, 3, 3)}
            channels += GROWTH
        if block < 3:
            shapes |= norm(f"trans{block}.bn1", channels) | {f"trans{block}.conv1.weight": (channels, channels, 1, 1)}
    shapes |= norm(last, channels) | {"fc.weight": (classes, channels), "fc.bias": (classes,)}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        state[name] = torch.randn(shape, generator=generator, dtype=torch.float64) / fan_in**0.5
        if name.endswith("running_var"):
            state[name] = state[name].abs() + 0.5
    return state


def dense_logits(state, codebase, images):
    """What a code base computes with them, written out."""
    layer, last = DENSE[codebase]

    def activate(feature, name):
        weights = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(feature, *weights).relu()

    feature = F.conv2d(images, state["conv1.weight"], padding=1)
    for block in (1, 2, 3):
        for number in range((DEPTH - 4) // 3):
            name = layer.format(block, number)
            added = F.conv2d(activate(feature, f"{name}bn1"), state[f"{name}conv1.weight"], padding=1)
            feature = torch.cat([feature, added], dim=1)
        if block < 3:
            mixed = F.conv2d(activate(feature, f"trans{block}.bn1"), state[f"trans{block}.conv1.weight"])
            feature = F.avg_pool2d(mixed, 2)
    return F.linear(activate(feature, last).mean(dim=(2, 3)), state["fc.weight"], state["fc.bias"])


@pytest.mark.parametrize("codebase", DENSE)
def test_dense_networks_give_the_logits_of_their_code_base(codebase, tmp_path):
    state = dense_state(codebase, 10)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth.tar")
    network = create_model("cifar_densenet40", 10, stem_width=STEM).double().eval()
    assert sum(weight.numel() for weight in network.parameters()) == 1_059_298
    import_weights(network, str(tmp_path / "w.pth.tar"), "cifar_densenet40")
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(network(images), dense_logits(state, codebase, images), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_dense_networks_that_join_their_channels_in_another_order_are_refused(tmp_path):
    """pytorch-cifar's DenseNet121, whose shapes all fit."""
    network = create_model("cifar_densenet121", 5)
    renamed = {}
    for name, value in network.state_dict().items():
        name = re.sub(
            r"features\.denseblock(\d)\.denselayer(\d+)\.", lambda found: f"dense{found[1]}.{int(found[2]) - 1}.", name
        )
        name = re.sub(r"features\.transition(\d)\.", r"trans\1.", name).replace("norm", "bn")
        renamed[name.replace("features.conv0", "conv1").replace("features.bn5", "bn")] = value
    torch.save({"net": renamed}, tmp_path / "ckpt.pth")
    with pytest.raises(UserError, match=r"weights of another network: the file lacks features\.denseblock1\."):
        import_weights(network, str(tmp_path / "ckpt.pth"), "cifar_densenet121")
