"""Losses are computed in float32 at least, whatever the network around them computes in."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def full_precision(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function compute outside autocast, in the widest dtype of its tensors and float32 at least.

    Logits and features arrive in float16 or bfloat16 under mixed precision, where exponentials, sums over pixels and
    linear systems lose what a loss is about. Floating tensors among the arguments are widened to one common dtype
    (float64 stays float64); integer tensors and everything else pass unchanged. The cast is differentiable, so the
    gradients come back in the dtype of each argument.
    """

    @wraps(function)
    def widened(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        floating = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.is_floating_point()]
        if all(tensor.dtype is torch.float32 for tensor in floating) and not _is_narrowed(floating[0]):
            return function(*args, **kwargs)
        dtype = reduce(torch.promote_types, (tensor.dtype for tensor in floating), torch.float32)

        def widen(argument: object) -> object:
            return argument.to(dtype) if isinstance(argument, Tensor) and argument.is_floating_point() else argument

        with without_autocast(floating[0]):
            return function(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})  # type: ignore[arg-type]

    return widened


def at_least_float32(tensor: Tensor) -> Tensor:
    """Widen half precision to float32; float64 stays."""
    return tensor if tensor.dtype is torch.float32 else tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Compute outside autocast on a tensor's device; nothing, which takes no time, where there is none."""
    return _widened(tensor.device.type) if _is_narrowed(tensor) else nullcontext()


# On which kinds of devices autocast was left for a loss, innermost last.
_left: list[str] = []


@contextmanager
def _widened(kind: str) -> Iterator[None]:
    _left.append(kind)
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        _left.pop()


def as_the_networks(tensor: Tensor) -> AbstractContextManager[object]:
    """Within a loss, compute in the run's precision again, as a layer that is part of a network would."""
    kind = tensor.device.type
    return torch.autocast(kind, torch.get_autocast_dtype(kind)) if kind in _left else nullcontext()


def _is_narrowed(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)
