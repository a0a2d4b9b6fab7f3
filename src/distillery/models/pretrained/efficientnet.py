"""EfficientNet-PyTorch's names of weights, for the EfficientNets of timm and torchvision, which do not know them."""

import re

from torch import nn

from distillery.models.weights import StateDict

# Where timm and torchvision keep an EfficientNet's blocks, which EfficientNet-PyTorch counts through.
BLOCK = re.compile(r"(blocks)\.\d+\.\d+|(features)\.\d+\.\d+\.block")

ENDS = ("_conv_stem", "_bn0", "_conv_head", "_bn1", "_fc")
ENDS_HERE = {
    "blocks": ("conv_stem", "bn1", "conv_head", "bn2", "classifier"),
    "features": ("features.0.0", "features.0.1", "features.8.0", "features.8.1", "classifier.1"),
}

# The layers of a block, in one order; those of the first stage do not expand and lack the first two.
LAYERS = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_se_reduce", "_se_expand", "_project_conv", "_bn2")
LAYERS_HERE = {
    "blocks": ("conv_pw", "bn1", "conv_dw", "bn2", "se.conv_reduce", "se.conv_expand", "conv_pwl", "bn3"),
    "blocks.0": ("conv_dw", "bn1", "se.conv_reduce", "se.conv_expand", "conv_pw", "bn2"),
    "features": ("0.0", "0.1", "1.0", "1.1", "2.fc1", "2.fc2", "3.0", "3.1"),
    "features.1": ("0.0", "0.1", "1.fc1", "1.fc2", "2.0", "2.1"),
}


def checkpoint_filter_fn(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Rename what has a place in the model."""
    found = [BLOCK.match(name) for name in model.state_dict()]
    paths = {match[0]: match[1] or match[2] for match in found if match}
    here: dict[str, str] = {}
    for number, (path, root) in enumerate(paths.items()):
        layers = LAYERS_HERE.get(".".join(path.split(".")[:2]), LAYERS_HERE[root])
        pairs = zip(LAYERS[-len(layers) :], layers, strict=True)
        here |= {f"_blocks.{number}.{theirs}": f"{path}.{layer}" for theirs, layer in pairs}
        here |= zip(ENDS, ENDS_HERE[root], strict=True)
    parts = {name: name.rpartition(".") for name in state_dict}
    return {f"{here.get(layer, layer)}{dot}{weight}": state_dict[name] for name, (layer, dot, weight) in parts.items()}
