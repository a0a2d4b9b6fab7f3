"""One forward pass of a network, written down: every tensor, the operation that made it, and the modules it crossed.

The network runs once on the ``meta`` device, so tracing costs no memory and no arithmetic for a network of any size; a
small one on the CPU, for there torch need not import its compiler, which takes longer than any small network.
Operations are seen below Python, which catches functional calls, operators and in-place updates that module hooks
alone would miss. Nothing is written into the traced network: a copy of it runs.

B batch, C channels, H height, W width, N tokens.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from distillery.imports import uncompiled

# Two images, so that no dimension of size one can be taken for the batch.
BATCH = 2

# Up to so many pixels a side, and so many numbers, a network runs in milliseconds.
SMALL_IMAGE, SMALL_NETWORK = 64, 3_000_000

POOLS = ("mean", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "amax", "avg_pool2d")


@dataclass(frozen=True)
class Value:
    """One tensor at one moment: an in-place update of its memory makes a new value."""

    number: int
    shape: tuple[int, ...]
    storage: int
    maker: int | None  # number of the operation; None for weights, constants and the images


@dataclass(frozen=True)
class Ref:
    """Stands in an operation's recorded arguments for the tensor of that value."""

    value: int


@dataclass(frozen=True)
class Op:
    """One ATen operation."""

    number: int
    name: str  # "relu_" for aten.relu_.default
    function: Any
    args: Any  # as called, every tensor replaced by its Ref
    kwargs: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str  # path of the innermost module that ran it
    writes: frozenset[int]  # storages that it overwrites


@dataclass
class Call:
    """One call of one module: the n-th (from 1) of this forward pass."""

    module: str
    number: int
    parent: int | None  # index of the call around it
    inputs: dict[int, int] = field(default_factory=dict)  # position among the arguments -> value
    outputs: dict[int, int] = field(default_factory=dict)  # position in the tuple it returned, or 0 -> value


class Trace:
    """What happened in one forward pass, and what follows from it."""

    def __init__(self, network: nn.Module, image_size: int) -> None:
        self.network = network  # the copy that ran, on the meta device
        self.image_size = image_size
        self.values: list[Value] = []
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.images = -1
        self.logits = -1

    def maker(self, value: int) -> Op | None:
        """The operation that made a value, or None for weights, constants and the images."""
        number = self.values[value].maker
        return None if number is None else self.ops[number]

    @cached_property
    def users(self) -> dict[int, list[Op]]:
        """For every value the operations that read it, in the order in which they ran."""
        users: dict[int, list[Op]] = {}
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                users.setdefault(value, []).append(op)
        return users

    @cached_property
    def from_images(self) -> set[int]:
        """Values that depend on the images; weights and constants do not."""
        found = {self.images}
        for op in self.ops:
            if any(value in found for value in op.inputs):
                found.update(op.outputs)
        return found

    @cached_property
    def depth(self) -> dict[int, int]:
        """For every value the longest chain of operations from the images to it."""
        depth = {self.images: 0}
        for op in self.ops:
            deepest = max((depth[value] for value in op.inputs if value in depth), default=None)
            if deepest is not None:
                depth.update(dict.fromkeys(op.outputs, deepest + 1))
        return depth

    @cached_property
    def trunk(self) -> list[int]:
        """Values through which every path from the images to the logits leads, first to last.

        In an order in which every operation comes after what it reads, these are the values over which no edge jumps.
        """
        toward_logits = {self.logits}
        for op in reversed(self.ops):
            if any(value in toward_logits for value in op.outputs):
                toward_logits.update(op.inputs)
        relevant = self.from_images & toward_logits
        furthest, trunk = -1, []
        for op in self.ops:
            alive = [value for value in op.outputs if value in relevant]
            if not alive:
                continue
            if furthest <= op.number and len(alive) == 1:
                trunk.append(alive[0])
            reach = (
                user.number for value in alive for user in self.users.get(value, ()) if set(user.outputs) & relevant
            )
            furthest = max(furthest, *reach, op.number)
        return trunk

    @cached_property
    def trunk_of_maps(self) -> list[int]:
        """The trunk up to where it is pooled to one vector an image."""
        found: list[int] = []
        for value in self.trunk:
            maker, shape = self.maker(value), self.values[value].shape
            pooled = len(shape) == 2 or (len(shape) == 4 and shape[2:] == (1, 1))
            if maker is not None and maker.name in POOLS and pooled:
                break
            found.append(value)
        return found

    def is_overwritten(self, value: int) -> bool:
        """Whether a later operation writes into the memory of this value."""
        made = self.values[value].maker
        after = self.ops if made is None else self.ops[made + 1 :]
        return any(self.values[value].storage in op.writes for op in after)

    def calls_around(self, call: Call) -> Iterator[Call]:
        """The calls that enclose this one, innermost first, without the whole network's."""
        while call.parent is not None:
            call = self.calls[call.parent]
            if call.module:
                yield call


def trace_network(model: nn.Module, image_size: int) -> Trace:
    """Run a copy of ``model`` in evaluation mode on two square images and write down what happens."""
    device = _device_for(model, image_size)
    network = (_meta_copy(model) if device == "meta" else copy.deepcopy(model).to(device)).eval()
    trace = Trace(network, image_size)
    with torch.no_grad():
        images = torch.zeros(BATCH, 3, image_size, image_size, device=device)
        with _Recorder(trace) as recorder:
            trace.images = recorder.value_of(images)
            output = network(images)
            trace.logits = recorder.value_of(_first_tensor(output))
    return trace


def _device_for(model: nn.Module, image_size: int) -> str:
    held = [*model.parameters(), *model.buffers()]
    is_small = image_size <= SMALL_IMAGE and sum(part.numel() for part in held) <= SMALL_NETWORK
    return "cpu" if is_small and not any(part.is_meta for part in held) else "meta"


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy of a network whose weights and buffers have shapes only; no weight is copied on the way."""
    shapes: dict[int, Any] = {}
    for parameter in model.parameters():
        shapes[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        shapes[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, shapes)


def _first_tensor(output: object) -> Tensor:
    tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    if not tensors:
        raise TypeError(f"the network returns {type(output).__name__}, not logits")
    return tensors[0]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fills a trace while the network runs."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace
        self.kept: list[Tensor] = []  # keeps memory from being freed, whose address would then name two tensors
        self.versions: dict[int, int] = {}  # storage -> how often it was written
        self.known: dict[tuple[Any, ...], int] = {}
        self.writers: dict[tuple[int, int], int] = {}  # storage and version -> the value that made it so
        self.open_calls: list[int] = []
        self.call_counts: dict[str, int] = {}
        self.hooks: list[Any] = []

    def __enter__(self) -> "_Recorder":
        for name, module in self.trace.network.named_modules():
            self.hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: self._begin(name, args)))
            self.hooks.append(module.register_forward_hook(lambda _, __, output: self._end(output)))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self.hooks:
            hook.remove()

    def value_of(self, tensor: Tensor) -> int:
        """The number of what ``tensor`` holds at this moment."""
        key = self._key(tensor)
        if key not in self.known:
            writer = self.writers.get(key[:2])
            if writer is None:
                return self._new(tensor, None)
            self.known[key] = writer
        return self.known[key]

    def _begin(self, name: str, args: tuple[Any, ...]) -> None:
        self.call_counts[name] = self.call_counts.get(name, 0) + 1
        call = Call(name, self.call_counts[name], self.open_calls[-1] if self.open_calls else None)
        call.inputs = {place: self.value_of(item) for place, item in enumerate(args) if isinstance(item, Tensor)}
        self.open_calls.append(len(self.trace.calls))
        self.trace.calls.append(call)

    def _end(self, output: Any) -> None:  # noqa: ANN401
        items = output if isinstance(output, (tuple, list)) else (output,)
        call = self.trace.calls[self.open_calls.pop()]
        call.outputs = {place: self.value_of(item) for place, item in enumerate(items) if isinstance(item, Tensor)}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}

        def as_ref(item: Any) -> Any:  # noqa: ANN401
            return Ref(self.value_of(item)) if isinstance(item, Tensor) else item

        seen_args, seen_kwargs = tree_map(as_ref, args), tree_map(as_ref, kwargs)
        output = func(*args, **kwargs)
        writes = frozenset(_storage(tensor) for tensor in _written(func, args, kwargs))
        for storage in writes:
            self.versions[storage] = self.versions.get(storage, 0) + 1
        number = len(self.trace.ops)
        inputs = tuple(item.value for item in tree_flatten((seen_args, seen_kwargs))[0] if isinstance(item, Ref))
        outputs = tuple(self._new(item, number) for item in tree_flatten(output)[0] if isinstance(item, Tensor))
        name = func.overloadpacket.__name__
        module = self.trace.calls[self.open_calls[-1]].module if self.open_calls else ""
        self.trace.ops.append(Op(number, name, func, seen_args, seen_kwargs, inputs, outputs, module, writes))
        return output

    def _new(self, tensor: Tensor, maker: int | None) -> int:
        key = self._key(tensor)
        number = len(self.trace.values)
        self.kept.append(tensor)
        self.trace.values.append(Value(number, tuple(tensor.shape), key[0], maker))
        self.known[key] = number
        self.writers.setdefault(key[:2], number)
        return number

    def _key(self, tensor: Tensor) -> tuple[Any, ...]:
        storage = _storage(tensor)
        version = self.versions.get(storage, 0)
        return storage, version, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


uncompiled(_Recorder.__torch_dispatch__)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:  # noqa: ANN401
    """The arguments that an operation's schema says it overwrites."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            yield from (item for item in tree_flatten(value)[0] if isinstance(item, Tensor))
