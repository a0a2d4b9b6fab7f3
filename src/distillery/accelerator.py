"""On which device a process computes, and what Apple's GPU (`mps`) lacks: float64.

What is summed in float64 is summed on the CPU there.
"""

import os

import torch
from torch import Tensor

from distillery.errors import UserError

VARIABLE = "DISTILLERY_DEVICE"


def default_device() -> torch.device:
    """An NVIDIA GPU where there is one, else the CPU; Apple's GPU where the environment asks for it.

    Raises:
        UserError: torch finds no Apple GPU, or the environment asks for something else.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", "mps"):
        raise UserError(
            f"{VARIABLE}: {asked!r} is not valid; it may be mps, or unset for an NVIDIA GPU where there is one, and "
            "else the CPU"
        )
    if asked == "mps":
        if not torch.backends.mps.is_available():
            raise UserError(
                f"{VARIABLE}: torch {torch.__version__} finds no Apple GPU (mps) here; unset it to use the CPU"
            )
        return torch.device("mps", 0)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def float64_device(device: torch.device) -> torch.device:
    """Where float64 numbers of a device's tensors may lie."""
    return torch.device("cpu") if device.type == "mps" else device


def wide(tensor: Tensor) -> Tensor:
    """In float64; on the CPU, where the tensor's device has none."""
    return tensor.to(float64_device(tensor.device)).double()


def gpu_name(device: torch.device) -> str:
    """The product name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Apple GPU"
