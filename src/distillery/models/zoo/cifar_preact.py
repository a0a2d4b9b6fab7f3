"""Residual networks with the activation before the convolution for 32 x 32 images, on timm's ResNetV2.

Wide ResNets (Zagoruyko and Komodakis 2016), the PreActResNets of pytorch-cifar, and BAKE's CIFAR_ResNet18, which is one
of them with a batch norm behind the first convolution. The latter two have no norm before the last pooling, so that
their penultimate features may be negative.
"""

from collections import OrderedDict
from collections.abc import Sequence

from timm.layers.create_conv2d import create_conv2d
from timm.layers.norm_act import BatchNormAct2d
from timm.models.resnetv2 import ResNetV2
from torch import nn

from distillery.models.initialisation import draw_as_he, draw_as_torch
from distillery.models.pretrained.checkpoint import substitute
from distillery.models.weights import StateDict

DEPTHS = {
    18: ((2, 2, 2, 2), True),
    34: ((3, 4, 6, 3), True),
    50: ((3, 4, 6, 3), False),
    101: ((3, 4, 23, 3), False),
    152: ((3, 8, 36, 3), False),
}


class CifarPreactResNet(ResNetV2):
    """timm's ResNetV2 with batch norms, and a stem that is one convolution at full resolution.

    Args:
        layers: blocks of each stage; every stage but the first halves the resolution.
        channels: outputs of each stage.
        stem_width: outputs of the first convolution.
        basic: two 3 x 3 convolutions a block; else a bottleneck of a quarter of the channels.
        num_classes: width of the last layer.
    """

    def __init__(
        self, layers: Sequence[int], channels: Sequence[int], stem_width: int, basic: bool, num_classes: int
    ) -> None:
        super().__init__(
            list(layers),
            tuple(channels),
            num_classes=num_classes,
            stem_chs=stem_width,
            basic=basic,
            bottle_ratio=1.0 if basic else 0.25,
            norm_layer=BatchNormAct2d,
            conv_layer=create_conv2d,
        )
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, stem_width, 3, padding=1, bias=False)))


def cifar_wrn(num_classes: int, depth: int, factor: int) -> CifarPreactResNet:
    """Build a Wide ResNet of ``depth`` = 6n + 4 layers, ``factor`` times as wide as 16, 32 and 64 channels."""
    blocks, remainder = divmod(depth - 4, 6)
    assert remainder == 0
    widths = (16 * factor, 32 * factor, 64 * factor)
    network = CifarPreactResNet((blocks,) * 3, widths, 16, True, num_classes)
    draw_as_he(network)
    # The last layer is a 1 x 1 convolution in timm; it is drawn as the linear layer that it stands for.
    network.head.fc.reset_parameters()
    nn.init.zeros_(network.head.fc.bias)
    return network


def cifar_preact_resnet(num_classes: int, depth: int) -> CifarPreactResNet:
    """Build a PreActResNet of pytorch-cifar: stages of ImageNet's widths, no norm before the last pooling."""
    layers, basic = DEPTHS[depth]
    widths = [channels * (1 if basic else 4) for channels in (64, 128, 256, 512)]
    network = CifarPreactResNet(layers, widths, 64, basic, num_classes)
    network.norm = nn.Identity()
    draw_as_torch(network)
    return network


def cifar_bake_resnet18(num_classes: int) -> CifarPreactResNet:
    """Build BAKE's CIFAR_ResNet18: the PreActResNet-18 with a batch norm and a ReLU behind the first convolution."""
    network = cifar_preact_resnet(num_classes, 18)
    network.stem.add_module("norm", nn.BatchNorm2d(64))
    network.stem.add_module("act", nn.ReLU())
    return network


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename the weights of pytorch-cifar and BAKE (``layer1.0.bn1``) and of CRD (``block1.layer.0.bn1``)."""
    first_norm = "stem.norm." if "stem.norm.weight" in model.state_dict() else "norm."
    rules = (
        (r"^(?:layer|block)(\d)\.(?:layer\.)?(\d+)", lambda found: f"stages.{int(found[1]) - 1}.blocks.{found[2]}"),
        (r"^(stages\.\d\.blocks\.\d+)\.bn(\d)\.", r"\1.norm\2."),
        (r"^(stages\.\d\.blocks\.\d+)\.(?:shortcut\.0|convShortcut)\.", r"\1.downsample.conv."),
        (r"^conv1\.", "stem.conv."),
        (r"^bn1\.", first_norm),
        (r"^(?:linear|fc)\.", "head.fc."),
    )
    return substitute(state_dict, rules)
