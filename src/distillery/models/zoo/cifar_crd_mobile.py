"""The light networks of the usual CIFAR-100 pairs (Tian et al. 2020): MobileNetV2 of half width, ShuffleNet V1 and V2.

Layers, widths, strides and first weights are those of RepDistiller.

B batch, C channels, G groups, H height, W width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.ops.misc import Conv2dNormActivation

from distillery.models.initialisation import draw_as_torch
from distillery.models.zoo.cifar_mobile import MOBILENET_V2

# Outputs and blocks of ShuffleNet V1's stages.
SHUFFLENET_V1 = ((240, 4), (480, 8), (960, 4))
STEM = 24


class HalfMobileNetV2(MobileNetV2):  # type: ignore[misc]
    """MobileNetV2 of half width, from 32 to 2 pixels: with ReLU, and an expansion by 1 in its first block."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, 0.5, MOBILENET_V2, round_nearest=1, dropout=0.0)
        first = self.features[1].conv
        width = first[0][0].in_channels
        expansion = Conv2dNormActivation(width, width, kernel_size=1, activation_layer=nn.ReLU)
        nn.init.kaiming_normal_(expansion[0].weight, mode="fan_out")
        first.insert(0, expansion)
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.ReLU6):
                self.set_submodule(name, nn.ReLU(inplace=True))


class Unit(nn.Module):
    """A unit of ShuffleNet V1; one of stride 2 adds its channels to those of its pooled input."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        middle = made // 4
        self.groups, self.stride = first_groups, stride
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Return the unit's map."""
        made = self.relu1(self.bn1(self.conv1(feature_BCHW)))
        batch, channels, height, width = made.shape
        grouped_BGCHW = made.view(batch, self.groups, channels // self.groups, height, width)
        made = grouped_BGCHW.transpose(1, 2).reshape(batch, channels, height, width)
        made = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(made)))))
        if self.stride == 1:
            made = made + feature_BCHW
        else:
            made = torch.cat([made, F.avg_pool2d(feature_BCHW, 3, 2, padding=1)], dim=1)
        activated_BCHW: Tensor = self.relu3(made)
        return activated_BCHW


class ShuffleNetV1(nn.Module):
    """ShuffleNet of three groups whose stem is a 1 x 1 convolution, from 32 to 4 pixels."""

    def __init__(self, num_classes: int, groups: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(STEM), nn.ReLU()
        inputs, stages = STEM, []
        for outputs, blocks in SHUFFLENET_V1:
            # The stem's few channels are not grouped.
            units = [Unit(inputs, outputs, 2, groups, 1 if inputs == STEM else groups)]
            units += [Unit(outputs, outputs, 1, groups, groups) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*units))
            inputs = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits (B, C)."""
        feature_BCHW = self.relu(self.bn1(self.conv1(pixels_BCHW)))
        feature_BCHW = self.layer3(self.layer2(self.layer1(feature_BCHW)))
        logits_BC: Tensor = self.linear(feature_BCHW.mean(dim=(2, 3)))
        return logits_BC


class NarrowStemShuffleNetV2(ShuffleNetV2):  # type: ignore[misc]
    """ShuffleNetV2 x1.0 whose stem is a 1 x 1 convolution, from 32 to 4 pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__([4, 8, 4], [STEM, 116, 232, 464, 1024], num_classes)
        self.conv1[0] = nn.Conv2d(3, STEM, 1, bias=False)
        self.maxpool = nn.Identity()
        draw_as_torch(self)
