"""Batch statistics over all processes."""

import pytest
from timm.layers import BatchNormAct2d
from torch import nn

from distillery.errors import UserError
from distillery.models import create_model
from distillery.models.sync_batchnorm import convert_sync_batchnorm


@pytest.mark.parametrize("name", ["cifar_resnet8", "densenet121"])
def test_gpus_get_torchs_own(name):
    """Only built: torch's module runs on GPUs alone."""
    network = create_model(name, 10)
    state = network.state_dict().keys()
    converted = convert_sync_batchnorm(network, "cuda")
    assert converted.state_dict().keys() == state
    kinds = [type(module) for module in converted.modules()]
    assert any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
    assert not any(kind in (nn.BatchNorm2d, BatchNormAct2d) for kind in kinds)


def test_cpus_are_refused_in_one_line():
    with pytest.raises(UserError, match="sync_batchnorm: true is not valid for several processes on CPUs"):
        convert_sync_batchnorm(create_model("cifar_resnet8", 10), "cpu")
