"""VGG with batch norms for 32 x 32 images, on torchvision's VGG.

As Tian et al. 2020, "Contrastive Representation Distillation", have it: four resolutions from 32 to 4 pixels, the last
shared by two groups of layers, then global pooling and one linear layer.
"""

from collections import OrderedDict

from torch import nn
from torchvision.models.vgg import VGG, make_layers

from distillery.models.pretrained.checkpoint import substitute
from distillery.models.weights import StateDict

CHANNELS = (64, 128, 256, 512, 512)

# Depth: convolutions in each of the five groups.
DEPTHS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def cifar_vgg(num_classes: int, depth: int) -> VGG:
    """Build VGG-8, 11, 13, 16 or 19, whose groups bear the names block0 to block4; first weights as torchvision's."""
    convolutions = DEPTHS[depth]
    flat = make_layers([c for c, n in zip(CHANNELS, convolutions, strict=True) for _ in range(n)], batch_norm=True)
    layers = iter(flat)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for group, count in enumerate(convolutions):
        parts[f"block{group}"] = nn.Sequential(*(next(layers) for _ in range(3 * count)))
        if group < 3:
            parts[f"pool{group}"] = nn.MaxPool2d(2)
    network = VGG(nn.Sequential(parts), init_weights=False)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, num_classes)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return network


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename the weights of CRD, whose groups stand alone."""
    return substitute(state_dict, ((r"^(block\d)\.", r"features.\1."),))
