"""A teacher's faster copies answer as it does."""

import pytest
import torch
from torch import nn

from distillery.distill import frozen
from distillery.distill.frozen import fold_batch_norms, halve_weights, hastened
from distillery.distill.student import FeatureExtractor
from distillery.distill.teacher import Teacher
from distillery.models import create_model
from distillery.models.normalize import Normalize
from distillery.models.taps import Taps, plan_taps

SIZES = {"timm:efficientnet_b0": 64, "timm:resnetv2_50": 64, "timm:tf_mobilenetv3_small_100": 64}


def teacher_of(name, norm="eval", taps=False, channels_last=False):
    """With batch norms as training leaves them."""
    torch.manual_seed(0)
    network = create_model(name, 7).eval() if isinstance(name, str) else name.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2)):
                value.uniform_(low, high)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    plan = Taps(network, plan_taps(network, 32)) if taps else None
    sizes = [(point.height, point.width) for point in plan.plan.points] if plan else []
    return Teacher(FeatureExtractor(network, Normalize((0.5,) * 3, (0.3,) * 3), plan, sizes, channels_last), norm)


def images_of(name="", count=4):
    size = SIZES.get(name, 32)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def batch_norms(teacher):
    return sum(isinstance(module, nn.BatchNorm2d) for module in teacher.extractor.network.modules())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("cifar_resnet8", 0),
        ("torchvision:mobilenet_v2", 0),
        ("timm:efficientnet_b0", 0),
        ("timm:tf_mobilenetv3_small_100", 0),
        ("cifar_efficientnet_b0", 0),
        ("cifar_vgg8", 0),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_folded_batch_norms_change_no_more_than_rounding(name, left, channels_last):
    teacher, images = teacher_of(name, channels_last=channels_last), images_of(name)
    had = batch_norms(teacher)
    fast, kind = hastened(teacher, "folded", torch.float32, images)
    assert kind == "folded"
    assert batch_norms(teacher) == had
    assert batch_norms(fast) < had
    assert batch_norms(fast) == left
    shown = images_of(name, 8).flip(0)
    assert torch.allclose(fast(shown).logits_BC, teacher(shown).logits_BC, rtol=1e-3, atol=1e-4)
    assert not torch.equal(fast(shown).logits_BC, teacher(shown).logits_BC)


class Rectified(nn.Module):
    """A batch norm that takes what was changed in place since a convolution gave it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Linear(5, 7)

    def forward(self, pixels):
        return self.last(self.norm(self.conv(pixels).relu_()).mean(dim=(2, 3)))


class Shared(nn.Module):
    """A convolution whose output goes elsewhere, too, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Linear(3, 7)

    def forward(self, pixels):
        between = self.conv(self.conv(pixels))
        return self.last((between + self.norm(between)).mean(dim=(2, 3)))


class Elsewhere(Shared):
    def forward(self, pixels):
        between = self.conv(pixels)
        return self.last((between + self.norm(between)).mean(dim=(2, 3)))


@pytest.mark.parametrize("network", [Rectified, Shared, Elsewhere, lambda: "cifar_densenet40"])
def test_what_cannot_be_folded_is_left(network):
    teacher = teacher_of(network())
    same, made = hastened(teacher, "folded", torch.float32, images_of())
    assert made == "plain"
    assert same is teacher


@pytest.mark.parametrize("options", [{"norm": "batch"}, {"taps": True}])
def test_batch_norms_stay_where_their_statistics_or_features_are_asked_for(options):
    teacher = teacher_of("cifar_resnet8", **options)
    assert hastened(teacher, "folded", torch.float32, images_of()) == (teacher, "plain")
    fast, kind = hastened(teacher, "folded", torch.bfloat16, images_of())
    assert kind == "half"
    assert batch_norms(fast) == batch_norms(teacher)


@pytest.mark.slow
@pytest.mark.parametrize("taps", [False, True])
@pytest.mark.parametrize("norm", ["eval", "batch"])
@pytest.mark.parametrize(
    "name", ["cifar_resnet8", "timm:efficientnet_b0", "torchvision:vit_b_16", "timm:deit_tiny_patch16_224"]
)
def test_weights_in_half_precision_give_the_same_bits(name, norm, taps):
    if "vit" in name or "deit" in name:
        if taps or norm == "batch":
            pytest.skip("has no batch norms, and taps of its own size")
        SIZES[name] = 224
    if taps and name in SIZES:
        pytest.skip("taps are planned for 32 pixels")
    teacher, images = teacher_of(name, norm, taps), images_of(name, 2)
    fast, kind = hastened(teacher, "half", torch.bfloat16, images)
    assert kind == "half"
    assert any(value.dtype == torch.bfloat16 for value in fast.extractor.network.parameters())
    assert all(value.dtype == torch.float32 for value in teacher.extractor.network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = teacher(images.flip(0)), fast(images.flip(0))
    assert torch.equal(found.logits_BC, expected.logits_BC)
    assert len(found.stages) == len(expected.stages)
    assert all(map(torch.equal, found.stages, expected.stages))


class Standardised(nn.Linear):
    def forward(self, features):
        return nn.functional.linear(features, self.weight / self.weight.std())


class Own(nn.Module):
    """A network that looks at a layer's weights itself, outside autocast."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 7)

    def forward(self, pixels):
        with torch.autocast("cpu", enabled=False):
            return self.last(pixels.float().mean(dim=(2, 3)))


def test_weights_that_a_network_uses_in_its_own_way_stay():
    teacher = teacher_of(Own())
    assert hastened(teacher, "half", torch.bfloat16, images_of()) == (teacher, "plain")
    network = nn.Sequential(Standardised(3, 4), nn.Linear(4, 2))
    assert halve_weights(network, torch.bfloat16) == 1
    assert network[0].weight.dtype == torch.float32


def test_a_copy_that_answers_otherwise_is_not_believed(monkeypatch):
    def wrong(network, pixels):
        folded = fold_batch_norms(network, pixels)
        network.conv1.bias.data += 0.1
        return folded

    monkeypatch.setattr(frozen, "fold_batch_norms", wrong)
    teacher = teacher_of("cifar_resnet8")
    assert hastened(teacher, "folded", torch.float32, images_of()) == (teacher, "plain")
