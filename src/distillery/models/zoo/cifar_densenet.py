"""Dense networks for 32 x 32 images: Huang et al. 2017, "Densely Connected Convolutional Networks".

B batch, C channels, H and W height and width.
"""

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn

from distillery.errors import UserError
from distillery.models.initialisation import draw_as_torch
from distillery.models.pretrained.checkpoint import substitute
from distillery.models.weights import StateDict


class DenseLayer(nn.Module):
    """Norm, activation and a 3 x 3 convolution, whose output joins the input: the paper's layer without bottleneck."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Return ``(B, C + growth, H, W)``: the input first."""
        return torch.cat([feature_BCHW, self.conv1(self.relu1(self.norm1(feature_BCHW)))], dim=1)


class PlainDenseNet(nn.Module):
    """Three dense blocks without bottlenecks or compression, as in section 4.1 of the paper.

    Modules bear the names of torchvision's DenseNets. Convolutions are drawn from He's normal distribution, the linear
    layer's bias is 0, as there.
    """

    def __init__(self, depth: int, growth: int, stem_width: int, num_classes: int) -> None:
        super().__init__()
        channels = stem_width
        parts: OrderedDict[str, nn.Module] = OrderedDict(conv0=nn.Conv2d(3, channels, 3, padding=1, bias=False))
        for block in (1, 2, 3):
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for layer in range(1, (depth - 4) // 3 + 1):
                layers[f"denselayer{layer}"] = DenseLayer(channels, growth)
                channels += growth
            parts[f"denseblock{block}"] = nn.Sequential(layers)
            if block < 3:
                parts[f"transition{block}"] = _transition(channels)
        parts["norm4"] = nn.BatchNorm2d(channels)
        parts["relu4"] = nn.ReLU()
        self.features = nn.Sequential(parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits for normalised images ``(B, 3, H, W)``."""
        logits_BC: Tensor = self.classifier(self.avgpool(self.features(images_BCHW)).flatten(1))
        return logits_BC


def cifar_densenet40(num_classes: int, stem_width: int = 16) -> PlainDenseNet:
    """Build DenseNet (L = 40, k = 12); the paper's first convolution has 16 channels, that of many code bases 24.

    Raises:
        UserError: ``stem_width`` is not valid.
    """
    if stem_width < 1:
        raise UserError(f"model_args.stem_width: {stem_width} is not valid; give 1 or more")
    return PlainDenseNet(40, 12, stem_width, num_classes)


def cifar_densenet121(num_classes: int) -> nn.Module:
    """Build torchvision's DenseNet-121 with a stem of one 3 x 3 convolution, as BAKE and pytorch-cifar have it."""
    from torchvision.models.densenet import DenseNet

    network: nn.Module = DenseNet(
        growth_rate=32, block_config=(6, 12, 24, 16), num_init_features=64, num_classes=num_classes
    )
    features = network.get_submodule("features")
    features.conv0 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    for part in ("norm0", "relu0", "pool0"):
        delattr(features, part)
    draw_as_torch(network)
    return network


def _transition(channels: int) -> nn.Sequential:
    parts = OrderedDict(
        norm=nn.BatchNorm2d(channels),
        relu=nn.ReLU(),
        conv=nn.Conv2d(channels, channels, 1, bias=False),
        pool=nn.AvgPool2d(2, 2),
    )
    return nn.Sequential(parts)


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename the weights of the networks without bottlenecks of densenet-pytorch and of pytorch-classification.

    Of layers with a bottleneck only the first half has a name here, so that they are refused: pytorch-cifar's join what
    they add in front of their input, not behind it.
    """

    def layer(found: re.Match[str]) -> str:
        return f"features.denseblock{found[1]}.denselayer{int(found[2]) + 1}.{found[3].replace('bn', 'norm')}."

    rules = (
        (r"^(?:block|dense)(\d)\.(?:layer\.)?(\d+)\.(bn1|conv1)\.", layer),
        (r"^trans(\d)\.bn1\.", r"features.transition\1.norm."),
        (r"^trans(\d)\.conv1\.", r"features.transition\1.conv."),
        (r"^conv1\.", "features.conv0."),
        (r"^bn1?\.", "features.norm4."),
    )
    return substitute(state_dict, rules)
