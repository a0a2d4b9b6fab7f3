"""A frozen teacher made faster: weights kept in half precision, batch norms folded into what comes before them.

B batch, H W pixels.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from distillery.distill.student import FeatureExtractor
from distillery.distill.teacher import Teacher
from distillery.models.taps import Taps

Kind = Literal["plain", "half", "folded"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Layers that use their weights as they are: these may be rounded or scaled once for all. By their exact kind, for a
# subclass may standardise its weights first; timm's Conv2dSame only pads its input.
LINEAR = ("Linear", "NonDynamicallyQuantizableLinear")
LAYERS = (*LINEAR, "Conv1d", "Conv2d", "Conv3d", "Conv2dSame")
# How far a folded network's answers to noise may lie from its own, as a share of their norm, in float32.
ROUNDING = 1e-3


def hastened(teacher: Teacher, kind: Kind, dtype: torch.dtype, images: Tensor) -> tuple[Teacher, Kind]:
    """The same teacher with a faster copy of its network, and of which kind this is.

    What a network does not allow is left. Batch norms stay where any feature is asked for, which may be taken at one,
    and where they use the batch's statistics. A copy is believed once it answers as the network does.

    Args:
        teacher: stays as it is.
        kind: what is wanted. ``half`` gives the same bits under autocast.
        dtype: what autocast computes in; float32 where there is none.
        images: uint8 (B, 3, H, W), to try copies on.
    """
    own, made = teacher.extractor, "plain"
    network, pixels = own.network, own.normalize(images).contiguous(memory_format=own.memory_format)
    if kind == "folded" and own.taps is None and teacher.norm == "eval":
        folded = _changed(network, lambda copy: fold_batch_norms(copy, pixels))
        if folded is not None and _distance(network, folded, pixels, torch.float32) <= ROUNDING:
            network, made = folded, "folded"
    if kind != "plain" and dtype != torch.float32:
        halved = _changed(network, lambda copy: halve_weights(copy, dtype))
        if halved is not None and _distance(network, halved, pixels, dtype) == 0:
            network, made = halved, "half" if made == "plain" else made
    if network is own.network:
        return teacher, "plain"
    # Kernels look at the format of weights, and folded ones are new.
    network.to(memory_format=own.memory_format)
    taps = None if own.taps is None else Taps(network, own.taps.plan, own.taps.kinds)
    last = own.memory_format == torch.channels_last
    extractor = FeatureExtractor(network, own.normalize, taps, own.sizes, last, own.unpooled)
    return Teacher(extractor, teacher.norm), cast(Kind, made)


def halve_weights(network: nn.Module, dtype: torch.dtype) -> int:
    """Round, in place, the weights that autocast would round in each step; return of how many layers."""
    layers = [module for module in network.modules() if type(module).__name__ in LAYERS]
    for module in layers:
        module.to(dtype)
    return len(layers)


def fold_batch_norms(network: nn.Module, pixels: Tensor) -> int:
    """Fold, in place, each batch norm that takes just what one convolution or linear layer gives; return how many.

    A forward pass on ``pixels`` shows which these are, so the network may be written in any way.
    """
    pairs = _pairs(network, pixels)
    for layer, norm in pairs:
        before, after = network.get_submodule(layer), network.get_submodule(norm)
        fuse: Callable[..., nn.Module] = fuse_linear_bn_eval if isinstance(before, nn.Linear) else fuse_conv_bn_eval
        # timm's batch norms may drop and activate, too.
        rest = [getattr(after, name) for name in ("drop", "act") if hasattr(after, name)]
        network.set_submodule(layer, fuse(before, after))
        network.set_submodule(norm, nn.Sequential(*rest) if rest else nn.Identity())
    return len(pairs)


def _pairs(network: nn.Module, pixels: Tensor) -> list[tuple[str, str]]:
    """The names of layers and of the batch norms that take what these give, both called once in a forward pass."""
    given: list[tuple[str, Tensor]] = []
    taken: list[tuple[str, Tensor]] = []

    def gives(name: str) -> Callable[..., None]:
        return lambda module, args, output: given.append((name, output))

    def takes(name: str) -> Callable[..., None]:
        return lambda module, args: taken.append((name, args[0]))

    handles: list[Any] = []
    for name, module in network.named_modules():
        if type(module).__name__ in LAYERS:
            handles.append(module.register_forward_hook(gives(name)))
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(takes(name)))
    with torch.no_grad():
        network(pixels)
    for handle in handles:
        handle.remove()
    called = [name for name, _ in (*given, *taken)]
    by_tensor = {id(tensor): name for name, tensor in given}
    found = [(by_tensor[id(tensor)], norm) for norm, tensor in taken if id(tensor) in by_tensor]
    return [pair for pair in found if all(called.count(name) == 1 for name in pair)]


def _changed(network: nn.Module, change: Callable[[nn.Module], int]) -> nn.Module | None:
    """A changed copy; None where nothing is changed, or it cannot be copied, or there is no room for two."""
    try:
        copy = deepcopy(network)
        return copy if change(copy) else None
    except RuntimeError:
        return None


@torch.no_grad()
def _distance(one: nn.Module, other: nn.Module, pixels: Tensor, dtype: torch.dtype) -> float:
    """How far the second's answers lie from the first's, as a share of their norm; infinitely far where it fails."""
    with _exact(), torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        first: Tensor = one(pixels)
        try:
            second: Tensor = other(pixels)
        except RuntimeError:  # a layer whose weights are used in a way of the network's own
            return float("inf")
    if torch.equal(first, second):
        return 0.0
    return float((first.double() - second.double()).norm() / first.double().norm())


@contextmanager
def _exact() -> Iterator[None]:
    """The same kernels for both, and nothing rounded to TF32."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = False, True, False
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
