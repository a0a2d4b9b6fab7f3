"""Names of published code bases, and what they are called here."""

import pytest
import torch

from distillery.models import create_model
from distillery.models.foreign import translate

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


@pytest.mark.parametrize(("name", "names"), NAMES)
def test_names_of_published_code_bases_are_known(name, names):
    own = {here: torch.zeros(()) for here in create_model(name, 10).state_dict()}
    for here, there in names.items():
        assert here in own
        assert list(translate({there: torch.zeros(())}, own)) == [here]
