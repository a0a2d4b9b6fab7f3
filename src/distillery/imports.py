"""torch and its neighbours without what they import by the way: most of a command's start would go there.

Fabric looks at the version of torchmetrics and asks torch's compiler for the name of a class; torch's optimizers, its
counter of operations and TensorBoard import the compiler and boto3, too. Nothing here compiles a network or writes to
S3. Whoever does (torchvision's operators use the compiler) imports them as ever.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import unwrap
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch.optim import Optimizer

COMPILER = "torch._dynamo"
Kind = TypeVar("Kind", bound="Optimizer")


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Let imports in here find none of these modules, unless they are imported already."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if it were not installed
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def import_fabric() -> None:
    """Import Fabric, which is then to be handed no compiled network."""
    import torch

    nothing = ModuleType(COMPILER)
    nothing.OptimizedModule = type("OptimizedModule", (torch.nn.Module,), {})  # type: ignore[attr-defined]
    is_new = sys.modules.setdefault(COMPILER, nothing) is nothing
    try:
        with without("torchmetrics"):
            import lightning_fabric  # noqa: F401
    finally:
        if is_new:
            del sys.modules[COMPILER]


def uncompiled(function: Callable[..., Any]) -> None:
    """Let torch call one of its own functions as it is, where it would import the compiler to keep it out of there."""
    raw = getattr(function, "__wrapped__", None)
    if raw is not None and not hasattr(raw, "__dynamo_disable"):
        raw.__dynamo_disable = raw


def uncompiled_optimizer(optimizer: type[Kind]) -> type[Kind]:
    """An optimizer of torch whose calls do not import the compiler; the same steps to the bit."""
    import torch

    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        uncompiled(getattr(optimizer, name))
    step = torch.no_grad()(unwrap(optimizer.step))
    return cast("type[Kind]", type(optimizer.__name__, (optimizer,), {"step": step}))
