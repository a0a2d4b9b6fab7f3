"""Batch statistics over all processes: torch's SyncBatchNorm, or timm's for batch norms with an activation inside."""

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distillery.errors import UserError


def convert_sync_batchnorm(model: nn.Module, device_type: str) -> nn.Module:
    """Let every batch normalisation of a model use the statistics of all processes.

    Parameters and buffers keep their names and are shared with the model given, which must not be used any more.

    Raises:
        UserError: the processes are on CPUs, where torch has no such module.
    """
    if device_type == "cpu":
        raise UserError(
            "sync_batchnorm: true is not valid for several processes on CPUs; start one process, or give false"
        )
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    if any(isinstance(module, _BatchNorm) and hasattr(module, "act") for module in model.modules()):
        from timm import layers

        convert = layers.convert_sync_batchnorm  # type: ignore[attr-defined]
    return convert(model)
