"""Batch statistics over all processes on CPUs, where torch's SyncBatchNorm runs on GPUs alone.

For tests of two processes: ``torchrun ... tests/cpu_sync_batchnorm.py train ...`` is the command line with it.

B batch, C channels; any axes may follow.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn import functional as differentiable
from torch.nn.modules.batchnorm import _BatchNorm


class CPUSyncBatchNorm(_BatchNorm):
    """Batch normalisation by the statistics of all processes' images together; gradients flow through them.

    Equal to one BatchNorm over the concatenated batch, whatever number of images each process has: counts, sums and
    sums of squares are added up, never means averaged. As with torch's SyncBatchNorm, the gradients of weight and
    bias are this process's share; their sum over the processes is the whole.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions (B, C, ...), got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """Return ``(B, C, ...)``, normalised channel by channel."""
        use_batch = self.training or self.running_mean is None
        normalised: Tensor
        if not use_batch or not dist.is_initialized() or dist.get_world_size() == 1:
            normalised = super().forward(input)
            return normalised
        self._check_input_dim(input)
        mean, variance, count = _global_statistics(input)
        if self.training and self.track_running_stats:
            self._track(mean.detach(), variance.detach(), count)
        shape = (1, -1) + (1,) * (input.dim() - 2)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        centred = values - mean.to(values.dtype).view(shape)
        scale = torch.rsqrt(variance + self.eps).to(values.dtype)
        if self.affine:
            normalised = centred * (scale * self.weight).view(shape) + self.bias.view(shape)
        else:
            normalised = centred * scale.view(shape)
        return normalised.to(input.dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics; the running variance is the unbiased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var.dtype), momentum)


class CPUSyncBatchNormAct(CPUSyncBatchNorm):
    """For timm's BatchNormAct2d, which carries dropout and an activation inside."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return ``(B, C, ...)``, normalised and activated."""
        activated: Tensor = self.act(self.drop(super().forward(input)))
        return activated


def _global_statistics(features: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance of each channel, shape ``(C,)``, over all processes, and the values per channel.

    In float64: the variance is the difference of two large numbers where the mean is far from zero.
    """
    values = features.double()
    axes = [0, *range(2, features.dim())]
    channels = features.shape[1]
    pixels = features.numel() // channels
    local = torch.cat([values.sum(axes), values.square().sum(axes), values.new_tensor([pixels])])
    total: Tensor = differentiable.all_reduce(local)  # type: ignore[no-untyped-call]
    count = total[-1].item()
    if count <= 1:
        raise ValueError("expected more than 1 value per channel over all processes when training")
    mean = total[:channels] / count
    variance = (total[channels:-1] / count - mean.square()).clamp(min=0)
    return mean, variance, count


def _convert_for_cpu(module: nn.Module) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return _replace_batchnorm(module)
    for name, child in module.named_children():
        setattr(module, name, _convert_for_cpu(child))
    return module


def _replace_batchnorm(module: _BatchNorm) -> CPUSyncBatchNorm:
    """Move a BatchNorm's parameters and buffers into a synchronised one."""
    replaced: Any = CPUSyncBatchNormAct if hasattr(module, "act") and hasattr(module, "drop") else CPUSyncBatchNorm
    synchronised: CPUSyncBatchNorm = replaced(
        module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    )
    for name, parameter in module.named_parameters(recurse=False):
        setattr(synchronised, name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(synchronised, name, buffer)
    for name, child in module.named_children():
        setattr(synchronised, name, child)
    return synchronised.train(module.training)


def main() -> None:
    """Run the command line with this in the place of torch's."""
    from distillery.cli import main
    from distillery.models import sync_batchnorm

    sync_batchnorm.convert_sync_batchnorm = lambda model, device_type: _convert_for_cpu(model)
    main()


if __name__ == "__main__":
    main()
