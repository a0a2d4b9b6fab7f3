"""Batch statistics over all processes on CPUs, where torch's SyncBatchNorm runs on GPUs alone.

For tests of two processes: ``torchrun ... tests/cpu_sync_batchnorm.py train ...`` is the command line with it.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn import functional as differentiable

from distillery import cli
from distillery.models import sync_batchnorm


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """Equal to one BatchNorm over the concatenated batch: counts, sums and sums of squares are added up, in float64.

    As with torch's SyncBatchNorm, the gradients of weight and bias are this process's share.
    """

    def forward(self, feature_BCHW):
        if not self.training or dist.get_world_size() == 1:
            return super().forward(feature_BCHW)
        values, channels = feature_BCHW.double(), self.num_features
        pixels = values.new_tensor([values.numel() // channels])
        local = torch.cat([values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), pixels])
        total = differentiable.all_reduce(local)
        count = total[-1].item()
        mean = total[:channels] / count
        variance = (total[channels:-1] / count - mean.square()).clamp(min=0)
        mean_C, variance_C, scale_C = (
            value.to(feature_BCHW.dtype) for value in (mean, variance, (variance + self.eps).rsqrt())
        )
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(variance_C * (count / (count - 1)), self.momentum)
        shape = (1, -1, 1, 1)
        scale_C = scale_C * self.weight
        return (feature_BCHW - mean_C.view(shape)) * scale_C.view(shape) + self.bias.view(shape)


def convert_for_cpu(module, device_type):
    """What `convert_sync_batchnorm` does on GPUs."""
    for each in module.modules():
        if type(each) is nn.BatchNorm2d:
            each.__class__ = CPUSyncBatchNorm
    return module


def main():
    """Run the command line with this in the place of torch's."""
    sync_batchnorm.convert_sync_batchnorm = convert_for_cpu
    cli.main()


if __name__ == "__main__":
    main()
