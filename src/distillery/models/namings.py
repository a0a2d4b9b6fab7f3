"""What names of published code bases may be called here, where a network is built from another class.

A rule only proposes; whether the model has such a weight, still misses it, and of that shape, others decide.
"""

import re
from collections.abc import Callable, Iterator
from itertools import product

# Names that different code bases give to the same part.
SYNONYMS = (("fc", "linear", "classifier", "head"), ("downsample", "shortcut"))

# Weights that pytorch-cifar's EfficientNetB0 holds and never uses: an expansion by 1.
UNUSED = re.compile(r"layers\.0\.(conv1|bn1)\.")

# Blocks in each stage of EfficientNet-B0, which pytorch-cifar counts through.
EFFICIENTNET_B0 = (1, 2, 2, 3, 3, 4, 1)


def proposals(name: str) -> Iterator[str]:
    """What a weight of another code base may be called here, likeliest first."""
    parts = name.split(".")
    for choice in product(*(_synonyms(part) for part in parts)):
        yield ".".join(choice)
    for pattern, here in RULES:
        found = re.fullmatch(pattern, name)
        if found is not None:
            yield here(found)


def _synonyms(part: str) -> tuple[str, ...]:
    return next((group for group in SYNONYMS if part in group), (part,))


def _preact(found: re.Match[str]) -> str:
    layer = re.sub(r"^bn(\d)$", r"norm\1", found["layer"])
    layer = "downsample.conv" if layer in ("shortcut.0", "convShortcut") else layer
    return f"stages.{int(found['stage']) - 1}.blocks.{found['block']}.{layer}.{found['weight']}"


def _efficientnet(found: re.Match[str]) -> str:
    block, stage = int(found["block"]), 0
    while block >= EFFICIENTNET_B0[stage]:
        block -= EFFICIENTNET_B0[stage]
        stage += 1
    layers = ["conv1", "bn1", "conv2", "bn2", "se", "conv3", "bn3"]
    places = ["0.0", "0.1", "1.0", "1.1", "2", "3.0", "3.1"]
    if stage == 0:
        layers, places = layers[2:], ["0.0", "0.1", "1", "2.0", "2.1"]
    layer, _, inner = found["layer"].partition(".")
    place = dict(zip(layers, places, strict=True)).get(layer, layer) + inner.replace("se", ".fc")
    return f"features.{stage + 1}.{block}.block.{place}.{found['weight']}"


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
    (r"layers\.(?P<block>\d+)\.(?P<layer>.+)\.(?P<weight>\w+)", _efficientnet),
    (r"linear\.(\w+)", lambda found: f"classifier.1.{found[1]}"),
    # CRD's VGGs, on torchvision's
    (r"(block\d\..+)", lambda found: f"features.{found[1]}"),
)
