"""EfficientNet-PyTorch's names of weights, for the EfficientNets of timm and torchvision, which do not know them."""

import re

from torch import nn

from distillery.models.weights import StateDict

# Where timm and torchvision keep an EfficientNet's blocks, which EfficientNet-PyTorch counts through.
BLOCK = re.compile(r"blocks\.\d+\.\d+|features\.\d+\.\d+\.block")

TIMM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
TORCHVISION = {
    "_conv_stem": "features.0.0",
    "_bn0": "features.0.1",
    "_conv_head": "features.8.0",
    "_bn1": "features.8.1",
    "_fc": "classifier.1",
}

# The layers of a block there, in timm and in torchvision. The blocks of the first stage do not expand.
PLAIN_LAYERS = {
    "_depthwise_conv": ("conv_dw", "0.0"),
    "_bn1": ("bn1", "0.1"),
    "_se_reduce": ("se.conv_reduce", "1.fc1"),
    "_se_expand": ("se.conv_expand", "1.fc2"),
    "_project_conv": ("conv_pw", "2.0"),
    "_bn2": ("bn2", "2.1"),
}
LAYERS = {
    "_expand_conv": ("conv_pw", "0.0"),
    "_bn0": ("bn1", "0.1"),
    "_depthwise_conv": ("conv_dw", "1.0"),
    "_bn1": ("bn2", "1.1"),
    "_se_reduce": ("se.conv_reduce", "2.fc1"),
    "_se_expand": ("se.conv_expand", "2.fc2"),
    "_project_conv": ("conv_pwl", "3.0"),
    "_bn2": ("bn3", "3.1"),
}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename what has a place in the model."""
    blocks = list(dict.fromkeys(found[0] for name in model.state_dict() if (found := BLOCK.match(name))))
    return {_rename(name, blocks): value for name, value in state_dict.items()}


def _rename(name: str, blocks: list[str]) -> str:
    layer, _, weight = name.rpartition(".")
    of_timm = blocks[0].startswith("blocks")
    counted = re.fullmatch(r"_blocks\.(\d+)\.(.+)", layer)
    if counted is None:
        return f"{(TIMM if of_timm else TORCHVISION).get(layer, layer)}.{weight}"
    block = dict(enumerate(blocks)).get(int(counted[1]), "")
    layers = PLAIN_LAYERS if block.startswith(("blocks.0.", "features.1.")) else LAYERS
    if not block or counted[2] not in layers:
        return name
    return f"{block}.{layers[counted[2]][0 if of_timm else 1]}.{weight}"
