"""Take the planned tensors out of a running network.

B batch, C channels, H height, W width, N tokens, D features.
"""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.experiment.schema.objective import STAGEWISE, Kind
from distillery.models.taps.plan import Source, TapError, TapPlan, TapPoint

# Activations without parameters, for networks in which no module takes or returns what an activation makes.
PLAIN_ACTIVATIONS = {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "mish": F.mish, "hardswish": F.hardswish}


@dataclass
class Features:
    """What one forward pass left at the taps; empty until the recording ends.

    Attributes:
        stages: one feature (B, C, H, W) a point of the plan, in its order, before the activation.
        activations: the same after the activation; where none follows, as before it.
        raw: the value that each stage hands on, (B, C, H, W): neither normed nor rectified in pre-activation networks.
        tokens: the same as the network holds it, (B, N, C), with class and register tokens in front.
        unpaired: for all stages of the network, (B, C, H, W) after the activation, or a transformer's (B, N, C).
        averaged: the map (B, D, H, W) whose mean is the embedding; where there is none, the embedding as one pixel.
        last: the map (B, C, H, W) that the embedding is made of; tokens on their grid.
        embedding: the vector (B, D) that entered the last layer.
    """

    stages: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    raw: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    unpaired: list[Tensor] = field(default_factory=list)
    averaged: Tensor | None = None
    last: Tensor | None = None
    embedding: Tensor | None = None


class Taps:
    """Hooks on a network that hand out the tensors of a plan.

    Build them on the network itself, before ``torch.compile`` and DDP wrap it: a compiled network never calls hooks
    that come after its first call. Build them after conversions that replace modules (synchronised batch norms).
    Outside :meth:`record` hooks do nothing. They change neither what the network computes nor its ``state_dict``, and
    what copies of the network compute (moving averages, other processes) does not reach the original's taps.

        taps = Taps(network, plan_taps(network, 224))
        with taps.record() as features:
            logits = network(images)
        features.stages, features.embedding
    """

    def __init__(
        self, model: nn.Module, plan: TapPlan, kinds: AbstractSet[Kind] = frozenset({"stages", "embedding"})
    ) -> None:
        """Place the hooks for the kinds of features that are wanted.

        Raises:
            TapError: the plan names a module that the network does not have, or no hook sees one of the kinds.
        """
        self.plan, self.kinds = plan, kinds
        self.stagewise = [
            (kind, point, _sources(plan, point, kind)) for kind in sorted(STAGEWISE & kinds) for point in plan.points
        ]
        if "unpaired" in kinds:
            self.stagewise += [("unpaired", point, _sources(plan, point, "unpaired")) for point in plan.unpaired]
        if "averaged" in kinds and plan.averaged is not None:
            self.stagewise.append(("averaged", plan.averaged, plan.averaged.sources))
        if "last" in kinds:
            if plan.last is None:
                raise TapError(f"{plan.model}: no module of it takes or returns the map that its embedding is made of")
            self.stagewise.append(("last", plan.last, plan.last.sources))
        as_pixel = "averaged" in kinds and plan.averaged is None
        self.embedding = plan.embedding if as_pixel or "embedding" in kinds else None
        self.sources = [source for _, _, sources in self.stagewise for source in sources]
        if self.embedding is not None:
            self.sources.append(self.embedding)
        self.board = _Board(len(self.sources))
        self.handles = [
            self._listen(_module(model, source, plan), source, slot) for slot, source in enumerate(self.sources)
        ]

    def _listen(self, module: nn.Module, source: Source, slot: int) -> torch.utils.hooks.RemovableHandle:
        listener = _Listener(self.board, slot, source)
        if source.side == "input":
            return module.register_forward_pre_hook(listener)
        return module.register_forward_hook(listener)

    @contextmanager
    def record(self) -> Iterator[Features]:
        """Record one forward pass: ``with taps.record() as features: network(images)``.

        Raises:
            TapError: another recording has not ended, or a tap did not give what was planned.
        """
        if self.board.active:
            raise TapError(f"{self.plan.model}: its taps are recording already; end one recording before the next")
        features = Features()
        self.board.begin()
        try:
            yield features
            self.collect(features)
        finally:
            self.board.end()

    def remove(self) -> None:
        """Take the hooks off the network."""
        for handle in self.handles:
            handle.remove()

    def collect(self, features: Features) -> None:
        """Check that every tap gave what was planned, and bring the maps to (B, C, H, W).

        Raises:
            TapError: a tap gave nothing, fired another number of times than planned, or gave another shape.
        """
        taken = iter([self._tensor(slot, source) for slot, source in enumerate(self.sources)])
        for kind, point, sources in self.stagewise:
            feature = self._feature(kind, point, [next(taken) for _ in sources])
            if kind in ("averaged", "last"):
                setattr(features, kind, feature)
            else:
                getattr(features, kind).append(feature)
        features.embedding = None if self.embedding is None else as_embedding(next(taken))
        if "averaged" in self.kinds and self.plan.averaged is None and features.embedding is not None:
            features.averaged = features.embedding[:, :, None, None]

    def _feature(self, kind: Kind, point: TapPoint, tensors: list[Tensor]) -> Tensor:
        if kind == "tokens" or (kind == "unpaired" and point.layout == "BNC"):
            return tensors[0]
        if kind in ("unpaired", "averaged", "last"):
            kind = "activations"
        parts = [as_map(tensor, point, self.plan.model) for tensor in tensors]
        feature_BCHW = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        before = kind == "stages" or (kind == "activations" and point.activated is None)
        if before and point.order is not None:
            feature_BCHW = feature_BCHW[:, self.board.index(point.order, feature_BCHW.device)]
        if kind == "activations" and point.activated is None and point.activation is not None:
            feature_BCHW = PLAIN_ACTIVATIONS[point.activation](feature_BCHW)
        _check_shape(feature_BCHW, point, self.plan.model)
        return feature_BCHW

    def _tensor(self, slot: int, source: Source) -> Tensor:
        tensor, calls, version = self.board.tensors[slot], self.board.calls[slot], self.board.versions[slot]
        place = f"{self.plan.model}: the tap on {source}"
        if tensor is None:
            raise TapError(
                f"{place} gave nothing in this forward pass ({calls} calls of {source.calls}): build Taps on the "
                "network that runs, before torch.compile and DDP, and let the whole network run"
            )
        if calls != source.calls:
            raise TapError(
                f"{place} fired {calls} times, but one forward pass has {source.calls} calls; record exactly one"
            )
        if version is not None and tensor._version != version:
            raise TapError(f"{place} was overwritten in place after it was taken; plan the taps again")
        return tensor


def _sources(plan: TapPlan, point: TapPoint, kind: Kind) -> tuple[Source, ...]:
    """Where hooks take a kind of a stage's feature.

    Raises:
        TapError: nowhere.
    """
    if kind == "unpaired":
        kind = "tokens" if point.layout == "BNC" else "activations"
    if kind == "stages":
        return point.sources
    if kind == "activations":
        if point.activated is not None:
            return (point.activated,)
        if point.activation is None or point.activation in PLAIN_ACTIVATIONS:
            return point.sources
        raise TapError(f"{plan.model}: no module of it takes or returns what is activated at the end of {point.name}")
    if kind == "tokens" and point.layout != "BNC":
        raise TapError(f"{plan.model}: the end of {point.name} is a map of {point.shape}, no sequence of tokens")
    if point.raw is None:
        raise TapError(f"{plan.model}: no module of it takes or returns what {point.name} hands on")
    return (point.raw,)


class _Board:
    """Where the hooks leave their tensors; kept apart from Taps so that hooks hold nothing else."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.indices: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}
        self.end()

    def begin(self) -> None:
        self.end()
        self.active = True

    def end(self) -> None:
        self.active = False
        self.tensors: list[Tensor | None] = [None] * self.slots
        self.calls = [0] * self.slots
        self.versions: list[int | None] = [None] * self.slots

    def take(self, slot: int, source: Source, items: Any) -> None:  # noqa: ANN401
        self.calls[slot] += 1
        if self.calls[slot] != source.call:
            return
        items = items if isinstance(items, (tuple, list)) else (items,)
        tensor = items[source.item] if source.item < len(items) else None
        # Called by keyword, or returning something else than planned: the slot stays empty, which `collect` reports.
        if not isinstance(tensor, Tensor):
            return
        if source.overwritten:
            # The network keeps the original, so that what relies on the in-place update still sees it.
            self.tensors[slot] = tensor.clone()
        else:
            self.tensors[slot] = tensor
            if not torch.compiler.is_compiling() and not tensor.is_inference():
                self.versions[slot] = tensor._version

    def index(self, order: tuple[int, ...], device: torch.device) -> Tensor:
        key = (order, device)
        if key not in self.indices:
            self.indices[key] = torch.tensor(order, device=device)
        return self.indices[key]


class _Listener:
    """A hook. Its copies in copies of the network have a board of their own, which never records."""

    def __init__(self, board: _Board, slot: int, source: Source) -> None:
        self.board, self.slot, self.source = board, slot, source

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any = None) -> None:  # noqa: ANN401
        if self.board.active:
            self.board.take(self.slot, self.source, args if self.source.side == "input" else output)


def as_map(tensor: Tensor, point: TapPoint, model: str) -> Tensor:
    """Bring a tapped tensor to (B, C, H, W): channels first, tokens without their prefix on their grid."""
    if point.layout == "BNC":
        tokens = tensor[:, point.prefix_tokens :]
        if tokens.shape[1] != point.height * point.width:
            raise TapError(
                f"{model}: {point.name} gave {tokens.shape[1]} tokens, not {point.height} x {point.width}; "
                "plan the taps for the size of the images that the network sees"
            )
        return tokens.transpose(1, 2).reshape(len(tokens), -1, point.height, point.width)
    return tensor.permute(0, 3, 1, 2) if point.layout == "BHWC" else tensor


def _check_shape(feature_BCHW: Tensor, point: TapPoint, model: str) -> None:
    channels, height, width = feature_BCHW.shape[1:]
    if (channels, height, width) != (point.channels, point.height, point.width):
        raise TapError(
            f"{model}: {point.name} gave {channels}@{height}x{width}, not {point.shape}; "
            "plan the taps for the size of the images that the network sees"
        )


def as_embedding(tensor: Tensor) -> Tensor:
    """Bring what enters a last layer to (B, D): the mean over the pixels of (B, D, H, W) or the tokens of (B, N, D)."""
    if tensor.ndim == 4:
        return tensor.mean(dim=(2, 3))
    return tensor.mean(dim=1) if tensor.ndim == 3 else tensor


def _module(model: nn.Module, source: Source, plan: TapPlan) -> nn.Module:
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if source.module in modules:
        return modules[source.module]
    prefixed = next((name for name in modules if name.endswith("." + source.module)), None)
    if prefixed is not None:
        prefix = prefixed.removesuffix(source.module)
        raise TapError(
            f"{plan.model}: {source.module} lies under {prefix} here; build Taps on the network itself, before DDP and "
            "torch.compile wrap it"
        )
    raise TapError(f"{plan.model}: the plan taps {source.module}, which {type(model).__name__} does not have")
