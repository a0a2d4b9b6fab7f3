"""Every network by its name."""

import subprocess
import sys

import pytest
import torch

from distillery.errors import UserError
from distillery.models import check_input, create_model, is_model, model_names
from distillery.models.registry import explain_unknown


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("mobilenet_v2", "torchvision")],
)
def test_libraries_are_asked_in_order(name, expected):
    network = create_model(name, 7)
    assert type(network).__module__.split(".")[0] == expected
    check_input(network, name, 64, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads_give_one_tensor_while_they_train(name):
    logits = create_model(name, 4)(torch.randn(2, 3, 96, 96))
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (2, 4)


def test_arguments_reach_the_network():
    assert create_model("resnet18", 3, drop_rate=0.25).drop_rate == 0.25
    assert create_model("torchvision:resnet18", 3, zero_init_residual=True).layer1[0].bn2.weight.abs().sum() == 0


def test_the_same_seed_gives_the_same_network():
    torch.manual_seed(3)
    first = create_model("cifar_resnet8", 10).state_dict()
    torch.manual_seed(3)
    second = create_model("cifar_resnet8", 10).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("cifar_resnet21", {}, r"model: no model 'cifar_resnet21'; did you mean .*'cifar_resnet20'.*\? valid: "),
        ("timm:resnet_18", {}, r"no model 'timm:resnet_18'; did you mean 'resnet18'"),
        ("torchvision:vit_b16", {}, r"no model 'torchvision:vit_b16'; did you mean 'vit_b_16'"),
        ("resnet50.a1_in1k", {}, r"a tag names weights: write `model: resnet50` and, .* `weights: timm:a1_in1k`"),
        ("hf-hub:timm/resnet18", {}, r"no model 'hf-hub:timm/resnet18'; valid: those of docs"),
        ("fasterrcnn_resnet50_fpn", {}, r"no model 'fasterrcnn_resnet50_fpn'"),
        ("", {}, r"no model ''; valid: "),
        ("resnet18", {"drop_pth_rate": 0.1}, r"model_args\.drop_pth_rate: resnet18 has no .* 'drop_path_rate'"),
        (
            "torchvision:resnet18",
            {"group": 2},
            r"model_args\.group: torchvision:resnet18 has no .* did you mean 'groups'",
        ),
        (
            "cifar_resnet8",
            {"widht": 2},
            r"model_args\.widht: cifar_resnet8 has no argument 'widht'; did you mean 'width'",
        ),
        ("cifar_resnet8", {"depth": 20}, r"model_args\.depth: cannot be set here; the model's name"),
        ("vit_tiny_patch16_224", {"img_size": "big"}, r"model_args: vit_tiny_.* built with \{img_size: 'big'\}: "),
        ("resnet18", {"num_classes": 3}, r"model_args\.num_classes: cannot be set here"),
        ("resnet18", {"pretrained": True}, r"model_args\.pretrained: cannot be set here; .* weights from `weights`"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, r"model_args\.weights: cannot be set here"),
    ],
)
def test_bad_names_and_arguments_are_one_line(name, arguments, line):
    with pytest.raises(UserError, match=line) as caught:
        create_model(name, 10, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision:densenet121", 8), ("vit_tiny_patch16_224", 32), ("torchvision:vit_b_16", 32), ("inception_v3", 64)],
)
def test_images_a_network_cannot_take_are_one_line(name, size):
    network = create_model(name, 10)
    with pytest.raises(
        UserError, match=rf"cannot take images of {size} x {size} pixels \(preprocess\.size\): \w"
    ) as caught:
        check_input(network, name, size, 10)
    assert "\n" not in str(caught.value)


def test_a_network_with_other_outputs_is_one_line():
    network = create_model("cifar_resnet8", 10)
    with pytest.raises(UserError, match=r"gives \(1, 10\) for one image; expected class scores of shape \(1, 9\)"):
        check_input(network, "cifar_resnet8", 8, 9)


def test_checking_the_input_changes_nothing():
    network = create_model("cifar_resnet8", 10).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    torch.manual_seed(0)
    check_input(network, "cifar_resnet8", 8, 10)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_names_and_their_check_agree():
    names = model_names()
    assert len(names) > 1000
    assert names == sorted(set(names))
    assert {"cifar_resnet20", "resnet50", "shufflenet_v2_x1_0"} <= set(names)
    assert all(is_model(name) for name in names[::40])
    assert not is_model("nothing")
    assert "valid: those of docs/models.md" in explain_unknown("nothing")


@pytest.mark.slow
def test_the_zoo_needs_no_library_and_its_names_not_even_torch():
    script = (
        "import sys\n"
        "from distillery.models import create_model, is_model\n"
        "assert is_model('cifar_resnet20') and 'torch' not in sys.modules\n"
        "create_model('cifar_resnet20', 10)\n"
        "import distillery.models.pretrained.load, distillery.models.normalize, distillery.models.sync_batchnorm\n"
        "import distillery.evaluation.metrics\n"
        "heavy = {'timm', 'torchvision', 'torchmetrics', 'scipy', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
