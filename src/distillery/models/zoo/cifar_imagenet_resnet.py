"""The ResNets and ResNeXts of ImageNet's widths for 32 x 32 images, on timm's ResNet.

As the collection pytorch-cifar by Kuang Liu has them: the stem is one convolution at full resolution, without pooling.
Weights are first drawn as torch draws them, as there.
"""

from typing import Literal

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from distillery.models.initialisation import draw_as_torch

# Depth: blocks of each stage, and whether they are bottlenecks.
DEPTHS: dict[int, tuple[tuple[int, int, int, int], type[BasicBlock] | type[Bottleneck]]] = {
    18: ((2, 2, 2, 2), BasicBlock),
    34: ((3, 4, 6, 3), BasicBlock),
    50: ((3, 4, 6, 3), Bottleneck),
    101: ((3, 4, 23, 3), Bottleneck),
    152: ((3, 8, 36, 3), Bottleneck),
}


class ThreeStageResNet(ResNet):
    """timm's ResNet with three stages instead of four."""

    def forward_features(self, images_BCHW: Tensor) -> Tensor:
        """Return the last stage's feature."""
        feature: Tensor = self.maxpool(self.act1(self.bn1(self.conv1(images_BCHW))))
        for stage in (self.get_submodule(f"layer{number}") for number in (1, 2, 3)):
            feature = stage(feature)
        return feature


def cifar_imagenet_resnet(num_classes: int, depth: Literal[18, 34, 50, 101, 152]) -> ResNet:
    """Build a ResNet with stages of 64, 128, 256 and 512 channels (four times as many behind bottlenecks)."""
    layers, block = DEPTHS[depth]
    network = ResNet(block, layers, num_classes=num_classes)  # type: ignore[arg-type]
    return _for_small_images(network, kernel_size=3)


def cifar_resnext29(num_classes: int, cardinality: int, width: int) -> ResNet:
    """Build ResNeXt-29: three stages of three blocks; ``cardinality`` groups of ``width`` channels in the first stage.

    Block outputs are twice as wide as the grouped convolution (pytorch-cifar; the stem is a 1 x 1 convolution there).
    Xie et al. 2017, section 5.2, fix them at 256, 512 and 1024, which is the same where cardinality x width is 128.
    """
    inner = cardinality * width
    network = ThreeStageResNet(
        Bottleneck,  # type: ignore[arg-type]  # timm's hint names instances
        (3, 3, 3),
        num_classes=num_classes,
        cardinality=cardinality,
        base_width=128 // cardinality,
        channels=(inner // 2, inner, 2 * inner),
    )
    return _for_small_images(network, kernel_size=1)


def _for_small_images(network: ResNet, kernel_size: int) -> ResNet:
    network.conv1 = nn.Conv2d(3, 64, kernel_size, padding=kernel_size // 2, bias=False)  # type: ignore[assignment]
    network.maxpool = nn.Identity()  # type: ignore[assignment]
    draw_as_torch(network)
    return network
