"""The kinds of features beside what stands before the activation, and that only what is asked for is taken."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distillery.experiment.schema.objective import Needs
from distillery.models import create_model
from distillery.models.taps import TapError, Taps, pair_networks, plan_taps

STAGEWISE = frozenset({"stages", "activations", "raw"})


def recorded(network, kinds, size=16):
    taps = Taps(network, plan_taps(network, size), kinds)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    outputs = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    with torch.no_grad(), taps.record() as features:
        network.eval()(images)
    return features, outputs


def test_a_rectified_stage_is_handed_on_rectified():
    features, outputs = recorded(create_model("cifar_resnet8", 5), STAGEWISE)
    kinds = zip(features.stages, features.activations, features.raw, strict=True)
    for number, (before, after, raw) in enumerate(kinds):
        assert (before < 0).any()
        assert torch.equal(after, before.relu())
        assert torch.equal(raw, outputs[f"layer{number + 1}"])
        assert torch.equal(raw, after)


def test_a_pre_activation_network_hands_on_raw_sums():
    features, outputs = recorded(create_model("cifar_wrn_16_1", 5), STAGEWISE)
    kinds = zip(features.stages, features.activations, features.raw, strict=True)
    for number, (before, after, raw) in enumerate(kinds):
        assert torch.equal(raw, outputs[f"stages.{number}"])  # a sum, neither normed nor rectified
        assert (raw < 0).any()
        assert not torch.equal(raw, before)
        assert torch.equal(after, before.relu())


class Functional(nn.Module):
    """Its activations are no modules, and what they make enters only functions."""

    def __init__(self, activate):
        super().__init__()
        self.activate = activate
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, images):
        feature = self.norm(self.second(self.first(images)))
        return self.fc((self.activate(feature) * 2.0).mean(dim=(2, 3)))


@pytest.mark.slow
def test_an_activation_that_no_module_shows_is_applied_to_what_enters_it():
    features, _ = recorded(Functional(F.silu), STAGEWISE)
    assert torch.equal(features.activations[-1], F.silu(features.stages[-1]))


def test_an_activation_that_no_module_shows_and_that_has_parameters_is_refused_only_if_asked_for():
    network = Functional(lambda feature: F.leaky_relu(feature, 0.3))
    plan = plan_taps(network, 16, "net")
    Taps(network, plan, frozenset({"stages", "raw"}))
    with pytest.raises(TapError, match=r"^net: no module of it takes or returns what is activated at the end of"):
        Taps(network, plan, frozenset({"activations"}))


def test_tokens_come_with_those_in_front_and_maps_have_none():
    network = create_model("timm:test_vit", 5, img_size=64)
    features, outputs = recorded(network, frozenset({"tokens", "raw"}), 64)
    assert torch.equal(features.tokens[-1], outputs["blocks"])
    prefix = network.num_prefix_tokens
    assert prefix > 0
    assert torch.equal(features.raw[-1].flatten(2).transpose(1, 2), features.tokens[-1][:, prefix:])
    plan = plan_taps(create_model("cifar_resnet8", 5), 16)
    with pytest.raises(TapError, match=r"the end of layer1 is a map of 16@16x16, no sequence of tokens"):
        Taps(create_model("cifar_resnet8", 5), plan, frozenset({"tokens"}))


def averaged(network, size):
    features, outputs = recorded(network, frozenset({"averaged", "embedding"}), size)
    torch.testing.assert_close(features.averaged.mean(dim=(2, 3)), features.embedding)
    return features.averaged, outputs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "module", "side"),
    [
        ("cifar_resnet8", 16, "layer3", 4),
        ("torchvision:mobilenet_v2", 64, "features", 2),
        ("torchvision:swin_t", 64, "permute", 2),
        ("timm:test_resnet", 64, "layer4", 2),
    ],
)
def test_the_averaged_map_is_what_the_pooling_takes_not_the_last_stage(name, size, module, side):
    map_BDHW, outputs = averaged(create_model(name, 5), size)
    assert torch.equal(map_BDHW, outputs[module])
    assert map_BDHW.shape[2:] == (side, side)


@pytest.mark.slow
def test_the_averaged_map_is_activated_where_no_module_shows_it_so():
    map_BDHW, outputs = averaged(create_model("torchvision:densenet121", 5), 64)
    assert torch.equal(map_BDHW, outputs["features"].relu())


def test_tokens_that_are_averaged_without_those_in_front_are_a_map():
    network = create_model("timm:test_vit", 5, img_size=64, global_pool="avg", fc_norm=False)
    map_BDHW, outputs = averaged(network, 64)
    assert map_BDHW.shape == (2, 64, 4, 4)
    assert torch.equal(map_BDHW.flatten(2).transpose(1, 2), outputs["norm"][:, network.num_prefix_tokens :])


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_convnext"])
def test_an_embedding_that_is_no_mean_is_a_map_of_one_pixel(name):
    arguments = {"img_size": 64} if name == "timm:test_vit" else {}
    map_BDHW, _ = averaged(create_model(name, 5, **arguments), 64)
    assert map_BDHW.shape == (2, 64, 1, 1)


@pytest.mark.slow
def test_unpaired_stages_are_all_there_at_their_own_size():
    student, teacher = create_model("cifar_resnet50", 5), create_model("cifar_resnet8", 5)
    needs = Needs(student={"activations", "unpaired"}, teacher={"activations"})
    pair = pair_networks(student, teacher, needs, 32)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), pair.student.taps.record() as features:
        student.eval()(images)
    assert len(features.activations) == 3
    assert [tuple(feature.shape[1:]) for feature in features.unpaired] == [
        (256, 32, 32),
        (512, 16, 16),
        (1024, 8, 8),
        (2048, 4, 4),
    ]
    assert [(point.channels, point.height) for point in pair.student.unpaired] == [
        (256, 32), (512, 16), (1024, 8), (2048, 4)
    ]  # fmt: skip
    assert torch.equal(features.unpaired[-1], features.activations[-1])
    transformer = create_model("timm:test_vit", 5, img_size=64)
    features, outputs = recorded(transformer, frozenset({"unpaired"}), 64)
    assert torch.equal(features.unpaired[-1], outputs["blocks"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5", "timm:densenet121"])
def test_values_that_are_overwritten_later_are_copied(name):
    torch.manual_seed(0)
    features, _ = recorded(create_model(name, 5), STAGEWISE, 64)
    for before, after in zip(features.stages, features.activations, strict=True):
        assert torch.equal(after, before.relu()) or torch.equal(after, F.relu6(before))


def test_only_what_is_asked_for_is_tapped():
    student, teacher = create_model("cifar_resnet8", 5), create_model("cifar_resnet14", 5)
    pair = pair_networks(student, teacher, Needs(student={"logits"}, teacher={"logits"}), 16)
    assert (pair.student.taps, pair.teacher.taps, pair.sizes) == (None, None, ())
    pair = pair_networks(student, None, Needs(student={"logits", "embedding"}), 16)
    assert [str(source) for source in pair.student.taps.sources] == ["fc input"]
    pair = pair_networks(student, teacher, Needs(student={"raw"}, teacher={"logits", "classifier"}), 16)
    assert len(pair.student.taps.sources) == len(pair.sizes) == 3  # alone, all its stages count
    assert pair.teacher.taps is None
    assert pair.teacher.classifier is teacher.fc
    hooked = [module for module in teacher.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooked


def last(name, size, **arguments):
    features, outputs = recorded(create_model(name, 5, **arguments), frozenset({"last"}), size)
    return features.last, outputs


@pytest.mark.parametrize(
    ("name", "module"),
    [("cifar_resnet8", "layer3"), ("torchvision:mobilenet_v2", "features"), ("timm:test_convnext", "stages")],
)
def test_the_last_map_is_what_is_pooled_to_the_embedding(name, module):
    map_BCHW, outputs = last(name, 64)
    assert torch.equal(map_BCHW, outputs[module])


def test_the_last_map_of_a_pre_activation_network_is_normed_and_rectified():
    map_BCHW, _ = last("cifar_wrn_16_1", 32)
    assert (map_BCHW >= 0).all()
    assert map_BCHW.shape[2:] == (8, 8)


def test_the_last_map_of_a_transformer_with_a_class_token_is_its_normed_tokens_on_their_grid():
    map_BCHW, outputs = last("timm:test_vit", 64, img_size=64)
    tokens = outputs["norm"]
    prefix = tokens.shape[1] - map_BCHW.shape[2] * map_BCHW.shape[3]
    assert prefix > 0
    assert torch.equal(map_BCHW.flatten(2).transpose(1, 2), tokens[:, prefix:])


def test_where_the_last_map_is_one_pixel_it_is_the_last_stages_of_more():
    map_BCHW, outputs = last("timm:test_efficientnet", 32)
    assert outputs["conv_head"].shape[2:] == (1, 1)
    assert map_BCHW.shape[2:] == (2, 2)
