"""Pyramidal residual networks for 32 x 32 images: Han et al. 2017, "Deep Pyramidal Residual Networks", additive form.

Every block is a little wider than the one before, by alpha channels over the whole depth. Shortcuts carry no weights:
what is missing in channels is zero, and where a stage halves the resolution they take the mean of 2 x 2 pixels.

B batch, C channels, H and W height and width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from distillery.models.initialisation import draw_as_he

STEM_WIDTH = 16
EXPANSION = 4  # of a bottleneck's last convolution


class PyramidBlock(nn.Module):
    """Convolutions between batch norms, without an activation before the first and after the last, and a shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        first, second = (1, stride) if bottleneck else (stride, 1)
        kernel = 1 if bottleneck else 3
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, kernel, first, padding=kernel // 2, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.widen: nn.Module = nn.Identity()
        if bottleneck:  # the last third of it
            outputs = EXPANSION * width
            self.widen = nn.Sequential(nn.ReLU(), nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, feature_BCHW: Tensor) -> Tensor:
        """Return the sum of both paths, which nothing activates."""
        residual = self.relu(self.bn2(self.conv1(self.bn1(feature_BCHW))))
        residual = self.widen(self.bn3(self.conv2(residual)))
        shortcut = self.shortcut(feature_BCHW)
        missing = residual.shape[1] - shortcut.shape[1]
        total: Tensor = residual + F.pad(shortcut, (0, 0, 0, 0, 0, missing))
        return total


class CifarPyramidNet(nn.Module):
    """A network of ``depth`` = 6n + 2 layers, or 9n + 2 of ``bottleneck`` blocks, that grows by ``alpha``.

    Any input of at least 4 x 4 pixels will do.
    """

    def __init__(self, num_classes: int, depth: int, alpha: int, bottleneck: bool) -> None:
        super().__init__()
        blocks, remainder = divmod(depth - 2, 9 if bottleneck else 6)
        assert remainder == 0
        self.conv1 = nn.Conv2d(3, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        channels, stages = STEM_WIDTH, []
        for stage in range(3):
            layers = []
            for block in range(blocks):
                width = round(STEM_WIDTH + (stage * blocks + block + 1) * alpha / (3 * blocks))
                layers.append(PyramidBlock(channels, width, 2 if stage and not block else 1, bottleneck))
                channels = width * (EXPANSION if bottleneck else 1)
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3 = stages
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        draw_as_he(self)
        self.fc.reset_parameters()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return logits (B, num_classes)."""
        feature = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(image_BCHW)))))
        logits: Tensor = self.fc(self.pool(self.relu(self.norm(feature))).flatten(1))
        return logits
