"""The CIFAR ResNets against their definition."""

import pytest
import torch
import torch.nn.functional as F

from distillery.models import create_model
from distillery.models.zoo.cifar_resnet import PadShortcut


def test_the_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    feature = torch.arange(2 * 4 * 5 * 5, dtype=torch.float32).view(2, 4, 5, 5)
    shortcut = PadShortcut(4)(feature)
    assert shortcut.shape == (2, 8, 3, 3)
    assert torch.equal(shortcut[:, 2:6], feature[:, :, [0, 2, 4]][..., [0, 2, 4]])
    assert shortcut[:, :2].abs().sum() == shortcut[:, 6:].abs().sum() == 0


def test_the_network_computes_what_the_paper_says():
    """Written out with functions, from the state dict alone."""
    torch.manual_seed(0)
    network = create_model("cifar_resnet14", 10).double()
    network.train()(torch.randn(8, 3, 16, 16).double())
    state = network.eval().state_dict()

    def norm(feature, name):
        values = [state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(feature, *values, eps=1e-5)

    images = torch.randn(3, 3, 16, 16).double()
    feature = F.relu(norm(F.conv2d(images, state["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            inner = F.relu(
                norm(F.conv2d(feature, state[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1")
            )
            inner = norm(F.conv2d(inner, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
            shortcut = feature
            if stride == 2:
                zeros = torch.zeros_like(feature[:, : feature.shape[1] // 2, ::2, ::2])
                shortcut = torch.cat([zeros, feature[:, :, ::2, ::2], zeros], dim=1)
            feature = F.relu(inner + shortcut)
    expected = feature.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    assert torch.allclose(network(images), expected, rtol=1e-10)


def test_modules_bear_the_names_of_torchvisions_resnets():
    network = create_model("cifar_resnet20", 10)
    assert [name for name, _ in network.named_children()] == [
        *("conv1", "bn1", "relu", "layer1", "layer2", "layer3", "avgpool", "fc")
    ]
    assert [name for name, _ in network.layer2[0].named_children()] == [
        *("conv1", "bn1", "relu", "conv2", "bn2", "downsample")
    ]
    assert not list(network.layer2[0].downsample.state_dict())


def test_the_sum_before_the_activation_can_be_kept():
    network = create_model("cifar_resnet8", 10).eval()
    kept = []
    network.layer1[0].relu.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    network(torch.randn(2, 3, 8, 8))
    assert kept[-1].min() < 0


@pytest.mark.parametrize("size", [4, 8, 9, 32, 64])
def test_any_size_of_image_will_do(size):
    assert create_model("cifar_resnet8", 5)(torch.randn(2, 3, size, size)).shape == (2, 5)


def test_convolutions_are_drawn_by_kaiming_initialisation():
    torch.manual_seed(0)
    weight = create_model("cifar_resnet20", 10).layer3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
