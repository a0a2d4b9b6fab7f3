"""What names of published code bases may be called here, where a network is built from another class.

A rule only proposes; whether the model has such a weight, still misses it, and of that shape, others decide.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

# Names that different code bases give to the same part.
SYNONYMS = (("fc", "linear", "classifier", "head"), ("downsample", "shortcut"))

# Weights that pytorch-cifar's EfficientNetB0 holds and never uses: an expansion by 1.
UNUSED = re.compile(r"layers\.0\.(conv1|bn1)\.")

# Where timm and torchvision keep an EfficientNet's blocks, which other code bases count through.
BLOCK = re.compile(r"blocks\.\d+\.\d+|features\.\d+\.\d+\.block")

# The layers of such a block: in EfficientNet-PyTorch, in pytorch-cifar, and here in timm's and torchvision's networks.
EXPANDING = (
    ("_expand_conv", "conv1", "conv_pw", "0.0"),
    ("_bn0", "bn1", "bn1", "0.1"),
    ("_depthwise_conv", "conv2", "conv_dw", "1.0"),
    ("_bn1", "bn2", "bn2", "1.1"),
    ("_se_reduce", "se.se1", "se.conv_reduce", "2.fc1"),
    ("_se_expand", "se.se2", "se.conv_expand", "2.fc2"),
    ("_project_conv", "conv3", "conv_pwl", "3.0"),
    ("_bn2", "bn3", "bn3", "3.1"),
)
# The same in the blocks of the first stage, which do not expand.
PLAIN = (
    ("_depthwise_conv", "conv2", "conv_dw", "0.0"),
    ("_bn1", "bn2", "bn1", "0.1"),
    ("_se_reduce", "se.se1", "se.conv_reduce", "1.fc1"),
    ("_se_expand", "se.se2", "se.conv_expand", "1.fc2"),
    ("_project_conv", "conv3", "conv_pw", "2.0"),
    ("_bn2", "bn3", "bn2", "2.1"),
)


def proposals(name: str, blocks: Sequence[str]) -> Iterator[str]:
    """What a weight of another code base may be called here, likeliest first; ``blocks`` are the model's."""
    parts = name.split(".")
    for choice in product(*(_synonyms(part) for part in parts)):
        yield ".".join(choice)
    for pattern, here in RULES:
        found = re.fullmatch(pattern, name)
        if found is not None:
            yield here(found)
    counted = re.fullmatch(r"(?:_blocks|layers)\.(\d+)\.(.+)\.(\w+)", name)
    if counted is not None and int(counted[1]) < len(blocks):
        yield from _in_block(blocks[int(counted[1])], counted[2], counted[3])


def block_paths(own: Iterable[str]) -> list[str]:
    """Where a model keeps an EfficientNet's blocks, in their order; ``own`` are the names of its state dict."""
    return list(dict.fromkeys(found[0] for name in own if (found := BLOCK.match(name)) is not None))


def _in_block(path: str, layer: str, weight: str) -> Iterator[str]:
    layers = PLAIN if path.startswith(("blocks.0.", "features.1.")) else EXPANDING
    for *theirs, timm, torchvision in layers:
        if layer in theirs:
            yield f"{path}.{timm if path.startswith('blocks') else torchvision}.{weight}"


def _synonyms(part: str) -> tuple[str, ...]:
    return next((group for group in SYNONYMS if part in group), (part,))


def _preact(found: re.Match[str]) -> str:
    layer = re.sub(r"^bn(\d)$", r"norm\1", found["layer"])
    layer = "downsample.conv" if layer in ("shortcut.0", "convShortcut") else layer
    return f"stages.{int(found['stage']) - 1}.blocks.{found['block']}.{layer}.{found['weight']}"


def _dense_layer(found: re.Match[str]) -> str:
    layer = f"denselayer{int(found['number']) + 1}.{found['layer'].replace('bn', 'norm')}"
    return f"features.denseblock{found['block']}.{layer}.{found['weight']}"


RULES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    # pytorch-cifar's and BAKE's networks with the activation first, and CRD's Wide ResNets, on timm's ResNetV2
    (r"(layer|block)(?P<stage>\d)\.(layer\.)?(?P<block>\d+)\.(?P<layer>.+)\.(?P<weight>\w+)", _preact),
    (r"conv1\.(\w+)", lambda found: f"stem.conv.{found[1]}"),
    (r"bn1\.(\w+)", lambda found: f"stem.norm.{found[1]}"),
    (r"bn1\.(\w+)", lambda found: f"norm.{found[1]}"),
    (r"(?:linear|fc)\.(\w+)", lambda found: f"head.fc.{found[1]}"),
    # pytorch-cifar's EfficientNetB0, on torchvision's
    (r"conv1\.(\w+)", lambda found: f"features.0.0.{found[1]}"),
    (r"bn1\.(\w+)", lambda found: f"features.0.1.{found[1]}"),
    (r"linear\.(\w+)", lambda found: f"classifier.1.{found[1]}"),
    # EfficientNet-PyTorch, on timm's
    (r"_(conv_stem|conv_head)\.(\w+)", lambda found: f"{found[1]}.{found[2]}"),
    (r"_bn0\.(\w+)", lambda found: f"bn1.{found[1]}"),
    (r"_bn1\.(\w+)", lambda found: f"bn2.{found[1]}"),
    (r"_fc\.(\w+)", lambda found: f"classifier.{found[1]}"),
    # ... and on torchvision's
    (r"_conv_stem\.(\w+)", lambda found: f"features.0.0.{found[1]}"),
    (r"_bn0\.(\w+)", lambda found: f"features.0.1.{found[1]}"),
    (r"_conv_head\.(\w+)", lambda found: f"features.8.0.{found[1]}"),
    (r"_bn1\.(\w+)", lambda found: f"features.8.1.{found[1]}"),
    (r"_fc\.(\w+)", lambda found: f"classifier.1.{found[1]}"),
    # The dense networks without bottlenecks of densenet-pytorch and of pytorch-classification. Of layers with a
    # bottleneck only the first half has a name here, so that they are refused: pytorch-cifar's join what they add in
    # front of their input, not behind it.
    (r"(?:block|dense)(?P<block>\d)\.(?:layer\.)?(?P<number>\d+)\.(?P<layer>bn1|conv1)\.(?P<weight>\w+)", _dense_layer),
    (r"trans(\d)\.bn1\.(\w+)", lambda found: f"features.transition{found[1]}.norm.{found[2]}"),
    (r"trans(\d)\.conv1\.(\w+)", lambda found: f"features.transition{found[1]}.conv.{found[2]}"),
    (r"conv1\.(\w+)", lambda found: f"features.conv0.{found[1]}"),
    (r"bn1?\.(\w+)", lambda found: f"features.norm4.{found[1]}"),
    # CRD's VGGs, on torchvision's
    (r"(block\d\..+)", lambda found: f"features.{found[1]}"),
)
