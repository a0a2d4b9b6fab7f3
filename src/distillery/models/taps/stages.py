"""Which modules end the stages of a network: a table, then timm's own list, then what a traced run shows.

B batch, C channels, H height, W width, N tokens.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from distillery.models.taps.plan import Found, Layout
from distillery.models.taps.trace import BATCH, Call, Trace

# Objectives weight stages by 1/2^(n-1-i), and the papers have four; what lies before the last four is the stem.
STAGES = 4


@dataclass(frozen=True)
class MapShape:
    """How a value reads as a feature map."""

    layout: Layout
    prefix_tokens: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class StageEnd:
    """The value that a stage hands on, and the module that made it."""

    module: str
    value: int


@dataclass(frozen=True)
class TableRow:
    """Stage ends of one family.

    Attributes:
        home: how the name of the Python module begins in which the network's class lives.
        stages: modules that end the stages.
        architecture: how timm's name for the network begins.
        holds: a module that the network must have besides.
    """

    home: str
    stages: tuple[str, ...]
    architecture: str = ""
    holds: str = ""


# MobileNetV2 is tapped inside inverted residuals, at the batch norm of the depthwise convolution of the first block of
# a stage (expanded width), as Matching Guided Distillation does; ShuffleNetV2's first tap is its stem after pooling.
TABLE = (
    TableRow("distillery.models.zoo.cifar_resnet", ("layer1", "layer2", "layer3")),
    TableRow("distillery.models.zoo.cifar_imagenet_resnet", ("layer1", "layer2", "layer3")),  # ResNeXt-29
    TableRow("distillery.models.zoo.cifar_preact", tuple(f"stages.{stage}" for stage in range(4))),
    TableRow("distillery.models.zoo.cifar_preact", tuple(f"stages.{stage}" for stage in range(3))),  # Wide ResNet
    # PyramidNets as Overhaul's authors tap them: in the next stage, of bottlenecks where something is activated first.
    TableRow("distillery.models.zoo.cifar_pyramid", ("layer2.0.bn2", "layer3.0.bn2", "norm"), holds="layer1.0.widen.1"),
    TableRow("distillery.models.zoo.cifar_pyramid", ("layer2.0.bn1", "layer3.0.bn1", "norm")),
    # The light networks of the CIFAR-100 pairs as RepDistiller shows them to its methods.
    TableRow("distillery.models.zoo.cifar_crd_mobile", tuple(f"features.{block}" for block in (3, 6, 13, 17))),
    TableRow("distillery.models.zoo.cifar_crd_mobile", ("layer1", "layer2", "layer3")),
    TableRow("distillery.models.zoo.cifar_crd_mobile", ("stage2", "stage3", "stage4")),
    TableRow("distillery.models.zoo.cifar_densenet", tuple(f"features.denseblock{block}" for block in (1, 2, 3))),
    TableRow("torchvision.models.resnet", ("layer1", "layer2", "layer3", "layer4")),
    TableRow("timm.models.resnet", ("layer1", "layer2", "layer3", "layer4")),  # ResNeXt, ResNeSt, SE, SK too
    TableRow("torchvision.models.mobilenetv2", tuple(f"features.{block}.conv.1.1" for block in (4, 7, 11, 17))),
    TableRow("timm.models.efficientnet", tuple(f"blocks.{stage}.0.bn2" for stage in (2, 3, 4, 6)), "mobilenetv2_"),
    TableRow("timm.models.efficientnet", tuple(f"blocks.{stage}" for stage in (1, 2, 3, 4)), "mobilenetv1_"),
    TableRow("timm.models.efficientnet", tuple(f"blocks.{stage}" for stage in (1, 2, 4, 6)), "efficientnet_b"),
    TableRow(
        "torchvision.models.efficientnet",
        tuple(f"features.{stage}" for stage in (2, 3, 5, 7)),
        holds="features.7.0.block",
    ),
    TableRow("torchvision.models.efficientnet", tuple(f"features.{stage}" for stage in (2, 3, 5, 6))),  # V2-S
    TableRow("torchvision.models.shufflenetv2", ("maxpool", "stage2", "stage3", "stage4")),
    TableRow("torchvision.models.vgg", tuple(f"features.block{group}" for group in (1, 2, 3, 4))),  # of the CIFAR zoo
    TableRow("torchvision.models.densenet", tuple(f"features.denseblock{block}" for block in (1, 2, 3, 4))),
    TableRow("timm.models.densenet", tuple(f"features.denseblock{block}" for block in (1, 2, 3, 4))),
)


def find_stage_ends(trace: Trace, model: nn.Module) -> tuple[Found, list[StageEnd]]:
    """The stage ends of a traced network, first to last; an empty list where it has no feature map at all."""
    ends = _from_table(trace, model)
    if ends:
        return "table", ends
    ends = _from_feature_info(trace, model)
    if ends:
        return "feature_info", ends
    return "traced", _from_shapes(trace)


def map_shape(trace: Trace, value: int) -> MapShape | None:
    """Read a value as a feature map: (B, C, H, W), (B, H, W, C) or (B, N, C) with N = prefix tokens + H*W; else None.

    Maps of square images are square, which distinguishes channels from pixels; where all three sizes agree, the
    operations that read the map decide.
    """
    shape = trace.values[value].shape
    if not shape or shape[0] != BATCH:
        return None
    last = len(set(shape[1:])) == 1 and _is_read_channels_last(trace, value)
    if len(shape) == 4 and shape[2] == shape[3] and not last:
        return MapShape("BCHW", 0, *shape[1:])
    if len(shape) == 4 and shape[1] == shape[2]:
        return MapShape("BHWC", 0, shape[3], shape[1], shape[2])
    if len(shape) == 3:
        prefix = _prefix_tokens(trace.network, shape[1])
        side = math.isqrt(shape[1] - prefix)
        if side > 1 and side * side == shape[1] - prefix:
            return MapShape("BNC", prefix, shape[2], side, side)
    return None


def _is_read_channels_last(trace: Trace, value: int) -> bool:
    """Whether the first operation after ``value`` for which the place of the channels matters takes them last."""
    pending, seen = [value], {value}
    for current in pending:
        for op in trace.users.get(current, ()):
            if op.name == "native_layer_norm" or (op.name == "permute" and op.args[1] == [0, 3, 1, 2]):
                return True
            if op.name == "mean" and len(op.args) > 1:
                return set(op.args[1]) <= {1, 2, -3}
            if op.name == "convolution" or any(word in op.name for word in ("batch_norm", "group_norm", "pool")):
                return False
            same = [out for out in op.outputs if trace.values[out].shape == trace.values[value].shape]
            pending.extend(out for out in same if out not in seen)
            seen.update(same)
    return False


def _prefix_tokens(network: nn.Module, tokens: int) -> int:
    """How many tokens come before the image's: as the network says, or as few as leave a square."""
    stated = getattr(network, "num_prefix_tokens", None)
    candidates = ([stated] if isinstance(stated, int) else []) + list(range(tokens))
    return next(prefix for prefix in candidates if math.isqrt(tokens - prefix) ** 2 == tokens - prefix)


def _from_table(trace: Trace, model: nn.Module) -> list[StageEnd]:
    architecture = str((getattr(model, "pretrained_cfg", None) or {}).get("architecture", ""))
    homes = [cls.__module__ for cls in type(model).__mro__]
    paths = {name for name, _ in model.named_modules()}  # among them "", the network
    for row in TABLE:
        fits = any(home.startswith(row.home) for home in homes) and architecture.startswith(row.architecture)
        if fits and paths.issuperset({*row.stages, row.holds}):
            return _ends_of(trace, row.stages)
    return []


def _from_feature_info(trace: Trace, model: nn.Module) -> list[StageEnd]:
    """The last module of every reduction that timm lists for its feature extraction."""
    info: Any = getattr(model, "feature_info", None)
    rows = info.info if hasattr(info, "info") else info
    if not isinstance(rows, list):
        return []
    reductions = {row["module"]: row.get("reduction") for row in reversed(rows) if row.get("module")}
    ends = _ends_of(trace, tuple(reversed(reductions)))
    if len({reductions[end.module] for end in ends}) == 1:
        return _evenly_spaced(ends)
    last = {reductions[end.module]: end for end in ends}
    return [end for end in last.values() if not _is_pooled(trace, end)][-STAGES:]


def _ends_of(trace: Trace, modules: tuple[str, ...]) -> list[StageEnd]:
    """What each module returned in its last call; an empty list if one of them returned no feature map."""
    returned = {call.module: _first_map(trace, call.outputs) for call in trace.calls}
    ends = [StageEnd(module, value) for module in modules if (value := returned.get(module)) is not None]
    return ends if len(ends) == len(modules) else []


def _first_map(trace: Trace, values: dict[int, int]) -> int | None:
    """The first feature map among a module's inputs or outputs."""
    return next((value for value in values.values() if map_shape(trace, value) is not None), None)


def _evenly_spaced(ends: list[StageEnd]) -> list[StageEnd]:
    """Four of the equal blocks of a network that keeps one resolution, the last among them; all if they are fewer."""
    if len(ends) <= STAGES:
        return ends
    return [ends[round((stage + 1) * len(ends) / STAGES) - 1] for stage in range(STAGES)]


def _is_pooled(trace: Trace, end: StageEnd) -> bool:
    maker = trace.maker(end.value)
    return maker is not None and "pool" in maker.name


def _from_shapes(trace: Trace) -> list[StageEnd]:
    """The last block output at every resolution of the trunk: every path from images to logits leads through it.

    What lies inside a module that leads from one resolution to the next (the expansion of a strided block, say) ends no
    stage, nor does a resolution at which only one layer computes (a stem), unless there is nothing else.
    """
    trunk = set(trace.trunk_of_maps)
    heavy = {name for name, module in trace.network.named_modules() if _computes(module)}
    blocks = {ancestor for name in heavy for ancestor in _ancestors(name)}
    layers: dict[int, int] = {}
    ends: dict[int, list[tuple[int, StageEnd]]] = {}
    for call in trace.calls:
        value = _first_map(trace, call.outputs)
        if value is None:
            continue
        height = _height(trace, value)
        if call.module in heavy:
            layers[height] = layers.get(height, 0) + 1
        if call.module and value in trunk:
            rank = 0 if _changes_resolution(trace, call, height) else 2 if call.module in blocks else 1
            ends.setdefault(height, []).append((rank, StageEnd(call.module, value)))
    best = {
        height: [end for rank, end in ranked if rank == max(rank for rank, _ in ranked)]
        for height, ranked in ends.items()
    }
    falling = [height for height in sorted(best, reverse=True) if layers.get(height, 0) > 0]
    deep = [height for height in falling if layers[height] > 1]
    if len(deep) == 1 and best[deep[0]][0].module in blocks:
        return _evenly_spaced(_siblings(best[deep[0]]))
    if len(deep) <= 1:
        deep = falling
    last = [max(best[height], key=lambda end: end.value) for height in deep]
    stages = [end for end in last if not _is_pooled(trace, end)][-STAGES:]
    return [StageEnd(_stage_name(trace, end, stages), end.value) for end in stages]


def _stage_name(trace: Trace, end: StageEnd, stages: list[StageEnd]) -> str:
    """The outermost module that returns what a stage ends with, and in which no other stage ends."""
    others = [other.module for other in stages if other is not end]
    names = [call.module for call in trace.calls if call.module and end.value in call.outputs.values()]
    return next(name for name in names if not any(other.startswith(f"{name}.") for other in others))


def _computes(module: nn.Module) -> bool:
    return any(weight.ndim >= 2 for weight in module.parameters(recurse=False))


def _ancestors(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _height(trace: Trace, value: int) -> int:
    shape = map_shape(trace, value)
    assert shape is not None
    return shape.height


def _changes_resolution(trace: Trace, call: Call, height: int) -> bool:
    """Whether a module around this call takes maps of this height and returns something else."""
    for around in trace.calls_around(call):
        taken, given = _first_map(trace, around.inputs), _first_map(trace, around.outputs)
        if taken is not None and _height(trace, taken) == height != (given and _height(trace, given)):
            return True
    return False


def _siblings(ends: list[StageEnd]) -> list[StageEnd]:
    """Of all candidates the largest group of blocks that one container holds side by side."""
    groups: dict[str, dict[int, StageEnd]] = {}
    for end in ends:
        groups.setdefault(end.module.rpartition(".")[0], {})[end.value] = end
    return max((list(group.values()) for group in groups.values()), key=len)
