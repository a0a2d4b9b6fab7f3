"""From the value that ends a stage back to the tensors before its activation, and to module boundaries that hold them.

B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from distillery.models.taps.plan import Side, Source
from distillery.models.taps.trace import Call, Op, Ref, Trace

# ATen names of elementwise activations; the in-place form of each ends in "_".
ACTIVATIONS = {
    "relu": "relu", "hardtanh": "relu6", "leaky_relu": "leaky_relu", "_prelu_kernel": "prelu",
    "rrelu_with_noise": "rrelu", "elu": "elu", "celu": "celu", "silu": "silu", "gelu": "gelu", "mish": "mish",
    "hardswish": "hardswish", "softplus": "softplus",
}  # fmt: skip
NORMS = ("batch_norm", "group_norm", "layer_norm")
# Operations that only pick, join or rearrange elements: what they do to channels can be read off index tensors.
REARRANGEMENTS = {"cat", "view", "_unsafe_view", "transpose", "permute", "clone", "slice", "split", "split_with_sizes"}
REARRANGEMENTS |= {"alias", "expand", "select", "unbind", "unsqueeze", "squeeze", "stack", "narrow", "_to_copy"}


@dataclass(frozen=True)
class Feature:
    """A feature as channels of tensors that hooks can reach; the fields as in :class:`TapPoint`."""

    sources: tuple[Source, ...]
    order: tuple[int, ...] | None
    activation: str | None
    activated: Source | None


def activation_of(op: Op | None) -> str | None:
    """The activation that an operation is, or None."""
    return None if op is None else ACTIVATIONS.get(op.name.removesuffix("_"))


def feature_before_activation(trace: Trace, value: int, channel_dim: int, module: str) -> Feature | None:
    """The feature of a stage that ends in ``value``, which ``module`` made: before its activation where it has one.

    Three cases. The value was made by an activation, perhaps piecewise, with the pieces concatenated and shuffled along
    the channels afterwards: the feature is what entered the activations. Or a normalisation and then an activation are
    all that reads the value (pre-activation networks): the feature is what that normalisation makes. Or neither: the
    feature is the value itself. None if no module boundary holds any of these.
    """
    if channel_dim == 1:
        assembled = _assemble(trace, value, module)
        if assembled is not None:
            return assembled
    following = _normalised(trace, value)
    if following is not None:
        source = _before_activation(trace, following, channel_dim)
        if source is not None:
            return Feature((source,), None, *_activation_after(trace, following, channel_dim))
    source = find_source(trace, value, channel_dim, module)
    return None if source is None else Feature((source,), None, *_activation_after(trace, value, channel_dim))


def find_source(trace: Trace, value: int, channel_dim: int, module: str) -> Source | None:
    """A module boundary at which hooks see ``value``.

    The boundary of ``module`` is preferred, then what leaves a module, and of these the last: layers that do nothing
    in evaluation (dropout, stochastic depth) hand on the same value, and in training it is their result that counts.
    """
    best: tuple[tuple[bool, bool, int], Call, Side, int] | None = None
    for number, call in enumerate(trace.calls):
        if not call.module:
            continue
        sides: tuple[tuple[Side, dict[int, int]], ...] = (("output", call.outputs), ("input", call.inputs))
        for side, items in sides:
            place = next((place for place, seen in items.items() if seen == value), None)
            rank = (call.module == module, side == "output", number)
            if place is not None and (best is None or rank > best[0]):
                best = (rank, call, side, place)
    if best is None:
        return None
    _, call, side, place = best
    return Source(
        module=call.module,
        side=side,
        item=place,
        call=call.number,
        calls=sum(other.module == call.module for other in trace.calls),
        overwritten=trace.is_overwritten(value),
        norm=_feeding_norm(trace, value),
        channels=trace.values[value].shape[channel_dim],
    )


def _before_activation(trace: Trace, value: int, channel_dim: int) -> Source | None:
    """A module boundary at which hooks see what an activation reads: its own input where the activation is a module."""
    reader = next(op for op in trace.users[value] if activation_of(op))
    return find_source(trace, value, channel_dim, reader.module)


def _feeding_norm(trace: Trace, value: int) -> str | None:
    """Path of the batch norm that made ``value``, or to whose output a shortcut was added to make it.

    The block's own branch is the longer one; what ends the shortcut does not count.
    """
    maker = trace.maker(value)
    if maker is not None and maker.name in ("add", "add_"):
        maker = trace.maker(max(maker.inputs, key=lambda term: trace.depth.get(term, 0)))
    if maker is None or "batch_norm" not in maker.name:
        return None
    has_statistics = isinstance(getattr(trace.network.get_submodule(maker.module), "running_mean", None), Tensor)
    return maker.module if has_statistics else None


def _activation_after(trace: Trace, value: int, channel_dim: int) -> tuple[str | None, Source | None]:
    """The activation that first reads ``value``, and where hooks see what it makes of it."""
    reader = next(iter(trace.users.get(value, [])), None)
    name = activation_of(reader)
    if reader is None or name is None:
        return None, None
    return name, find_source(trace, reader.outputs[0], channel_dim, reader.module)


def _normalised(trace: Trace, value: int) -> int | None:
    """What the normalisation makes of ``value`` if it alone reads it and an activation alone reads the result."""
    users = trace.users.get(value, [])
    if len(users) != 1 or not any(norm in users[0].name for norm in NORMS):
        return None
    result = users[0].outputs[0]
    after = trace.users.get(result, [])
    return result if after and all(activation_of(op) for op in after) else None


def _assemble(trace: Trace, value: int, module: str) -> Feature | None:
    """Follow every channel of ``value`` back to the activation that made it, and take what entered that activation."""
    leaves: dict[int, int] = {}  # value before an activation -> code of its first channel
    activations: set[str] = set()
    known: dict[int, Tensor | None] = {}

    def codes_of(value: int) -> Tensor | None:
        if value not in known:
            known[value] = _codes(value)
        return known[value]

    def _codes(value: int) -> Tensor | None:
        maker, shape = trace.maker(value), trace.values[value].shape
        activation = activation_of(maker)
        if maker is not None and activation is not None and len(shape) == 4:
            activations.add(activation)
            first = leaves.setdefault(maker.inputs[0], sum(trace.values[leaf].shape[1] for leaf in leaves))
            return torch.arange(first, first + shape[1], device="cpu").reshape(1, -1, 1, 1).expand(shape)
        if maker is None or maker.name not in REARRANGEMENTS:
            return None
        return _replay(maker, value, codes_of)

    codes = codes_of(value)
    if codes is None or len(activations) != 1:
        return None
    order = codes[0, :, 0, 0]
    assert (codes == order.reshape(1, -1, 1, 1)).all(), "channels were mixed with pixels"
    sources = [_before_activation(trace, leaf, 1) for leaf in leaves]
    reachable = tuple(source for source in sources if source is not None)
    if len(reachable) < len(sources):
        return None
    identity = order.tolist() == list(range(sum(source.channels for source in reachable)))
    ordered = None if identity else tuple(order.tolist())
    return Feature(reachable, ordered, activations.pop(), find_source(trace, value, 1, module))


def _replay(op: Op, value: int, codes_of: Callable[[int], Tensor | None]) -> Tensor | None:
    """What a rearrangement makes of channel codes, as ``value`` among its outputs; None if an input has no codes."""
    inputs = {number: codes_of(number) for number in op.inputs}
    if any(codes is None for codes in inputs.values()):
        return None

    def as_codes(item: Any) -> Any:  # noqa: ANN401
        return inputs[item.value] if isinstance(item, Ref) else item

    made: Any = op.function(*tree_map(as_codes, op.args), **tree_map(as_codes, op.kwargs))
    outputs: list[Tensor] = list(made) if isinstance(made, (tuple, list)) else [made]
    return outputs[op.outputs.index(value)]
