"""Residual networks for 32 x 32 images: He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2.

A 3 x 3 convolution, three stages of n basic blocks with 16, 32 and 64 channels at full, half and quarter resolution,
global average pooling, one linear layer: 6n + 2 layers with weights. Shortcuts carry no weights ("option A"), or are
projections ("option B"), as in the networks that Tian et al. 2020, "Contrastive Representation Distillation", publish
results of on CIFAR-100, among them the wider 8x4 and 32x4.
Modules have the names of torchvision's ResNets, so that code for those finds its layers here.

B batch, C classes, H and W height and width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distillery.errors import UserError


class PadShortcut(nn.Module):
    """Option A: take every second pixel and surround the channels with zeros, half before and half after.

    Where the zeros go is not stated in the paper; published CIFAR weights expect them on both sides.
    """

    def __init__(self, extra_channels: int) -> None:
        super().__init__()
        self.before = extra_channels // 2
        self.after = extra_channels - self.before

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Return ``(B, C + extra_channels, ceil(H / 2), ceil(W / 2))``."""
        return F.pad(feature_BCHW[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; the activation follows the sum.

    The activation is not done in place, so that hooks on ``relu`` can keep the sum before it.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = downsample

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Return the block's feature after the activation."""
        shortcut = feature_BCHW if self.downsample is None else self.downsample(feature_BCHW)
        residual = self.relu(self.bn1(self.conv1(feature_BCHW)))
        residual = self.bn2(self.conv2(residual))
        activated: Tensor = self.relu(residual + shortcut)
        return activated


class CifarResNet(nn.Module):
    """The network; any input of at least 4 x 4 pixels will do.

    ``width`` is the number of channels of the first stage, 16 in the paper; the others have twice and four times it.
    ``stem_width`` is that of the first convolution, the same in the paper. ``shortcut`` is "pad" (option A) or
    "projection" (option B: 1 x 1 convolution and batch norm).

    Convolutions are drawn from He's normal distribution (variance 2 / fan-out), as in torchvision's ResNets; the linear
    layer keeps torch's default.
    """

    def __init__(
        self, depth: int, num_classes: int, width: int = 16, stem_width: int | None = None, shortcut: str = "pad"
    ) -> None:
        super().__init__()
        blocks, stem_width = (depth - 2) // 6, stem_width or width
        self.conv1 = nn.Conv2d(3, stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(stem_width, width, blocks, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits ``(B, C)`` for normalised images ``(B, 3, H, W)``."""
        feature = self.relu(self.bn1(self.conv1(images_BCHW)))
        feature = self.layer3(self.layer2(self.layer1(feature)))
        logits_BC: Tensor = self.fc(self.avgpool(feature).flatten(1))
        return logits_BC


def cifar_resnet(
    num_classes: int, depth: int, width: int = 16, stem_width: int | None = None, shortcut: str = "pad"
) -> CifarResNet:
    """Build the network with ``depth`` = 6n + 2 layers.

    Raises:
        UserError: ``width`` or ``shortcut`` is not valid.
    """
    assert depth >= 8
    assert (depth - 2) % 6 == 0
    if width < 1:
        raise UserError(f"model_args.width: {width} is not valid; give 1 or more")
    if shortcut not in ("pad", "projection"):
        raise UserError(f"model_args.shortcut: {shortcut!r} is not valid; give pad or projection")
    if shortcut == "pad" and stem_width not in (None, width):
        raise UserError("model_args.stem_width: only shortcut: projection leads from one width to another")
    return CifarResNet(depth, num_classes, width, stem_width, shortcut)


def _stage(in_channels: int, channels: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride, _shortcut(in_channels, channels, stride, shortcut))
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1, None) for _ in range(blocks - 1)))


def _shortcut(in_channels: int, channels: int, stride: int, kind: str) -> nn.Module | None:
    if stride == 1 and in_channels == channels:
        return None
    if kind == "pad":
        return PadShortcut(channels - in_channels)
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
