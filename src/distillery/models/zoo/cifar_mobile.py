"""EfficientNet-B0, MobileNetV2 and ShuffleNetV2 for 32 x 32 images, on torchvision's classes.

Layers, widths and strides are those of pytorch-cifar by Kuang Liu, and weights are first drawn as there: by torch's own
rule. docs/models.md says where that collection has weights beside these.
"""

import re

from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.shufflenetv2 import ShuffleNetV2

from distillery.models.initialisation import draw_as_torch
from distillery.models.pretrained import efficientnet
from distillery.models.pretrained.checkpoint import substitute
from distillery.models.weights import StateDict

# Expansion, kernel, stride, inputs, outputs, layers.
EFFICIENTNET_B0 = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)

# Expansion, outputs, layers, stride.
MOBILENET_V2 = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def cifar_efficientnet_b0(num_classes: int, dropout: float = 0.2) -> EfficientNet:
    """Build EfficientNet-B0 with a stem at full resolution and no 1280-wide convolution before the pooling.

    Stochastic depth is off: pytorch-cifar asks for 0.2, but its counter of blocks never moves.
    """
    settings = [MBConvConfig(*setting) for setting in EFFICIENTNET_B0]
    network = EfficientNet(settings, dropout, stochastic_depth_prob=0.0, num_classes=num_classes)
    network.features = network.features[:-1]
    network.features[0][0].stride = (1, 1)
    network.classifier[1] = nn.Linear(320, num_classes)
    draw_as_torch(network)
    return network


def cifar_mobilenet_v2(num_classes: int) -> MobileNetV2:
    """Build MobileNetV2 that goes from 32 to 4 pixels, without dropout."""
    network = MobileNetV2(num_classes, inverted_residual_setting=MOBILENET_V2, dropout=0.0)
    network.features[0][0].stride = (1, 1)
    draw_as_torch(network)
    return network


def cifar_shufflenet_v2(num_classes: int) -> ShuffleNetV2:
    """Build ShuffleNetV2 x1.0 with a stem at full resolution, without pooling."""
    network = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes)
    network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
    draw_as_torch(network)
    return network


# pytorch-cifar's names of the layers of EfficientNet's blocks.
LAYERS = ("conv1", "bn1", "conv2", "bn2", "se.se1", "se.se2", "conv3", "bn3")


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename the weights of pytorch-cifar's EfficientNetB0; its first block holds an expansion that it never uses."""
    if not isinstance(model, EfficientNet):
        return state_dict
    used = {name: value for name, value in state_dict.items() if not re.match(r"layers\.0\.(conv1|bn1)\.", name)}
    layers = dict(zip(LAYERS, efficientnet.LAYERS, strict=True))
    rules = (
        (r"^layers\.(\d+)\.(.+)(?=\.)", lambda found: f"_blocks.{found[1]}.{layers.get(found[2], found[2])}"),
        (r"^conv1\.", "_conv_stem."),
        (r"^bn1\.", "_bn0."),
        (r"^linear\.", "_fc."),
    )
    return efficientnet.checkpoint_filter_fn(substitute(used, rules), model)
