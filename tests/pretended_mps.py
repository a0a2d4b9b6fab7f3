"""Tensors on the CPU that say they are on Apple's GPU (`mps`), and refuse what it refuses.

There are no float64 tensors on it, none that mix with tensors of the CPU, and no view of its memory for numpy. What its
kernels compute, or lack, cannot be pretended.
"""

import platform
from contextlib import contextmanager

import torch
from lightning_fabric.accelerators.mps import MPSAccelerator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

MPS, CPU = torch.device("mps", 0), torch.device("cpu")
ATEN = torch.ops.aten
# These take tensors of both.
MIXED = {ATEN._to_copy.default, ATEN.copy_.default, ATEN.index.Tensor, ATEN._unsafe_index_put.default}


class Pretended(torch.Tensor):
    """A tensor of the CPU that says it is on Apple's GPU."""

    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        new = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",  # to the eyes of C++: neither where numbers lie nor the CPU
            requires_grad=requires_grad,
        )
        new.inner = inner
        return new

    @property
    def device(self):
        return MPS

    def tolist(self):
        return self.inner.tolist()

    def numpy(self):
        raise TypeError("can't convert mps:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __repr__(self):
        return f"Pretended({self.inner!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), options=None):
        return computed(function, arguments, options or {})

    def __tensor_flatten__(self):
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(parts, meta, size, stride):
        return Pretended(parts["inner"])


def computed(function, arguments, options):
    """What a function gives, on the device on which it would."""
    asked = options.get("device")
    device = torch.device(asked) if asked is not None else None
    given = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
    here = [tensor for tensor in given if isinstance(tensor, Pretended)]
    if here and function not in MIXED:
        foreign = [tensor for tensor in given if not isinstance(tensor, Pretended) and tensor.ndim]
        if foreign:
            raise RuntimeError(f"{function}: Expected all tensors to be on the same device, mps:0 and cpu")
    plain = tree_map_only(Pretended, lambda tensor: tensor.inner, (arguments, options))
    if device is not None:
        plain[1]["device"] = CPU
    result = function(*plain[0], **plain[1])
    if function is ATEN.copy_.default:
        return arguments[0]
    known = {id(tensor.inner): tensor for tensor in here}
    on_mps = device.type == "mps" if device is not None else bool(here)
    if not on_mps:
        return result
    return tree_map_only(
        torch.Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else Pretended(tensor), result
    )


class Mode(TorchDispatchMode):
    """What makes tensors on Apple's GPU where a function is told to."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        return computed(function, arguments, options or {})


class Constructors(TorchFunctionMode):
    """As `Mode`, for what makes tensors of Python's numbers out of its sight."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        if function in (torch.tensor, torch.as_tensor) and "device" in options:
            return function(*arguments, **(options | {"device": CPU})).to(options["device"])
        if function is torch.Tensor.new_tensor and isinstance(arguments[0], Pretended):
            return torch.tensor(arguments[1], dtype=arguments[0].dtype).to(MPS)
        if function is torch.Tensor.quantile and isinstance(arguments[0], Pretended):
            return function(arguments[0], torch.tensor(arguments[1], dtype=arguments[0].dtype).to(MPS))
        return function(*arguments, **options)


@contextmanager
def apples_gpu(monkeypatch):
    """Within, torch has an Apple GPU, and the environment asks for it."""
    with monkeypatch.context() as patch:
        patch.setenv("DISTILLERY_DEVICE", "mps")
        patch.setattr(torch.backends.mps, "is_available", lambda: True)
        patch.setattr(platform, "processor", lambda: "arm")
        MPSAccelerator.is_available.cache_clear()
        with Constructors(), Mode():
            yield
    MPSAccelerator.is_available.cache_clear()
