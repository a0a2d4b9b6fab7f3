"""First weights: BAKE's, and the last layer's by a recipe."""

import math

import pytest
import torch
from torch import nn

from distillery.errors import UserError
from distillery.models import create_model
from distillery.models.initialisation import draw_classifier


def drawn(name, std, seed=5, **arguments):
    torch.manual_seed(seed)
    network = create_model(name, 200, **arguments)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    draw_classifier(network, std)
    return network, before


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("cifar_wrn_16_2", ["head.fc"]),  # a convolution
        ("torchvision:mobilenet_v2", ["classifier.1"]),
        ("deit_tiny_distilled_patch16_224", ["head", "head_dist"]),
        ("torchvision:resnet18", ["fc"]),
    ],
)
def test_the_last_layer_is_drawn_and_nothing_else(name, layers):
    network, before = drawn(name, 0.03)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert (
        {f"{layer}.weight" for layer in layers}
        <= changed
        <= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    )
    for layer in map(network.get_submodule, layers):
        weight = layer.weight.detach()
        assert weight.std().item() == pytest.approx(0.03, rel=0.05)
        assert abs(weight.mean().item()) < 0.001
        assert weight.abs().max() > 0.08  # a uniform distribution ends at 0.052
        assert not layer.bias.any()


def test_the_draw_comes_from_the_seed():
    first, again, other = (drawn("cifar_resnet8", 0.01, seed)[0].fc.weight for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_network_without_a_last_layer_is_one_line():
    network = nn.Sequential(nn.Flatten())
    network.pretrained_cfg = {"classifier": "0"}
    with pytest.raises(UserError, match=r"^classifier_std: Sequential has no last layer to draw; remove this key$"):
        draw_classifier(network, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchvision:resnet50", {}),
        ("resnest50d", {"zero_init_last": False}),
        ("resnext101_32x4d", {"zero_init_last": False}),
        ("torchvision:mobilenet_v2", {"dropout": 0.0}),
        ("torchvision:efficientnet_b0", {"dropout": 0.0, "stochastic_depth_prob": 0.0}),
    ],
)
def test_convolutions_and_batch_norms_begin_as_bakes(name, arguments):
    """BAKE's code: N(0, 2 / (k * k * outputs)), not divided by groups, and batch norms 1 and 0."""
    torch.manual_seed(0)
    network = create_model(name, 10, **arguments)
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            noise = 5 / math.sqrt(2 * module.weight.numel())
            assert module.weight.std().item() == pytest.approx(expected, rel=noise), key
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all(), key
            assert not module.bias.any(), key
            assert (module.eps, module.momentum) == (1e-5, 0.1), key
