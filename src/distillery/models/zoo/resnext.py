"""ResNeXt-152 (32x4d), which timm and torchvision have no name for, on timm's ResNet."""

from timm.models.resnet import Bottleneck, ResNet


def resnext152_32x4d(
    num_classes: int, drop_rate: float = 0.0, drop_path_rate: float = 0.0, zero_init_last: bool = True
) -> ResNet:
    """Build the network of Xie et al. 2017 with the depths of ResNet-152; first weights are timm's for ResNeXt."""
    return ResNet(
        Bottleneck,  # type: ignore[arg-type]  # timm's hint names instances
        (3, 8, 36, 3),
        num_classes=num_classes,
        cardinality=32,
        base_width=4,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        zero_init_last=zero_init_last,
    )
