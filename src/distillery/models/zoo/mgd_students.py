"""The students of Matching Guided Distillation for 224 x 224 images, where they are not timm's or torchvision's own."""

import timm
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.shufflenetv2 import ShuffleNetV2

from distillery.models.initialisation import draw_as_torch

# Expansion, outputs, layers, stride. In torchvision the stages of 64 and 96 channels have each other's strides.
MOBILENET_V2 = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 1],
    [6, 96, 3, 2],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


class Rectify(nn.Module):
    """Negative values become 0."""

    def forward(self, feature: Tensor) -> Tensor:
        """Return the same shape."""
        return feature.clamp(min=0)


def mobilenet_v1(num_classes: int) -> nn.Module:
    """Build timm's MobileNetV1 with ReLUs (timm has ReLU6) and torch's own first weights."""
    network: nn.Module = timm.create_model("mobilenetv1_100", num_classes=num_classes, act_layer="relu")
    draw_as_torch(network)
    return network


def mgd_mobilenet_v2(num_classes: int, dropout: float = 0.0) -> MobileNetV2:
    """Build torchvision's MobileNetV2 with the reference's strides: 64 channels at 28 pixels, 96 at 14; no dropout.

    torchvision's published weights fit.
    """
    return MobileNetV2(num_classes, inverted_residual_setting=MOBILENET_V2, dropout=dropout)


def mgd_shufflenet_v2(num_classes: int, inplace_relu_compat: bool = False) -> ShuffleNetV2:
    """Build torchvision's ShuffleNetV2 x1.0; its published weights fit.

    With ``inplace_relu_compat`` the feature of the last stage is tapped after its activation: in the reference, an
    activation in place at the beginning of the next layer overwrites the tapped tensor, and the published numbers were
    reached so. The network computes the same in both cases.
    """
    network = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes)
    if inplace_relu_compat:
        network.stage4.append(Rectify())
    return network
