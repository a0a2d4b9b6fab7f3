"""LeViT-768 of USI (Ridnik et al. 2022), on timm's LeViT: LeViT-384 with every width doubled.

Its authors list the network, but never published what it is; this is a reading of its name.
"""

from timm.models.levit import LevitDistilled


def levit_768(
    num_classes: int, img_size: int = 224, drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> LevitDistilled:
    """Build the network; as timm's LeViT-384 it has two heads, whose logits are averaged, and timm's first weights."""
    network = LevitDistilled(  # type: ignore[no-untyped-call]
        img_size=img_size,
        num_classes=num_classes,
        embed_dim=(768, 1024, 1536),
        key_dim=32,
        num_heads=(12, 18, 24),
        depth=(4, 4, 4),
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
    # As timm has it of its own networks; `classifier_modules` finds the last layer by it.
    network.pretrained_cfg = {"classifier": ("head.linear", "head_dist.linear")}  # type: ignore[assignment]
    return network
