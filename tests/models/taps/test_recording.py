"""Tensors taken out of running networks: unchanged results, copies, compilers, wrappers, and all that may go wrong."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from distillery.models import create_model
from distillery.models.taps import TapError, Taps, plan_taps

INPLACE = ["torchvision:resnet18", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5", "timm:densenet121"]


@pytest.fixture(autouse=True)
def fresh_compiler():
    yield
    torch.compiler.reset()


def tiny(size=16):
    torch.manual_seed(0)
    network = create_model("cifar_resnet8", 5)
    return network, Taps(network, plan_taps(network, size, "student")), torch.randn(2, 3, size, size)


def without_inplace(network):
    network = copy.deepcopy(network)
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", INPLACE)
def test_recording_changes_neither_logits_nor_gradients(name):
    torch.manual_seed(0)
    plain = create_model(name, 5)
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    tapped = copy.deepcopy(plain)
    taps = Taps(tapped, plan_taps(tapped, 64))
    images = torch.randn(2, 3, 64, 64)
    expected = plain.train()(images)
    with taps.record():
        logits = tapped.train()(images)
    assert torch.equal(logits, expected)
    expected.square().sum().backward()
    logits.square().sum().backward()
    for (path, weight), reference in zip(tapped.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight.grad, reference.grad), path
    for (path, buffer), reference in zip(tapped.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, reference), path
    assert tapped.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", INPLACE)
def test_activations_in_place_do_not_reach_the_taps(name):
    torch.manual_seed(0)
    network = create_model(name, 5).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    careful = without_inplace(network)
    plan = plan_taps(network, 64)
    assert any(source.overwritten for point in plan.points for source in point.sources)
    images = torch.randn(2, 3, 64, 64)
    gradients, maps = [], []
    for model in (network, careful):
        with Taps(model, plan).record() as features:
            model(images)
        sum(feature.square().sum() for feature in features.stages).backward()
        gradients.append([weight.grad for weight in model.parameters()])
        maps.append(features.stages)
    for tap, expected in zip(*maps, strict=True):
        assert torch.equal(tap, expected)
    assert all(tap.min() < 0 for tap in maps[0][-3:])
    for gradient, expected in zip(*gradients, strict=True):
        assert (gradient is None) == (expected is None)
        assert gradient is None or torch.equal(gradient, expected)


def test_an_overwritten_tensor_that_was_not_copied_stops_the_run():
    network = create_model("torchvision:resnet18", 5)
    plan = plan_taps(without_inplace(network), 64, "student")
    taps = Taps(network, plan)
    with (
        pytest.raises(TapError, match=r"student: the tap on layer1.1.relu input 2/2 was overwritten in place"),
        taps.record(),
    ):
        network(torch.randn(2, 3, 64, 64))


def test_hooks_are_idle_outside_a_recording():
    network, taps, images = tiny()
    network(images)
    with taps.record() as first:
        network(images)
    network(images)
    with taps.record() as second:
        network(images[:1])
    assert [len(tap) for tap in first.stages] == [2] * 3
    assert [len(tap) for tap in second.stages] == [1] * 3
    assert taps.board.tensors == [None] * 4


def test_a_failing_forward_pass_leaves_nothing_behind():
    network, taps, images = tiny()
    with pytest.raises(RuntimeError), taps.record():
        network(images[:, :2])
    with taps.record() as features:
        network(images)
    assert len(features.stages) == 3


def test_removed_taps_are_gone():
    network, taps, _ = tiny()
    taps.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("clone", ["deepcopy", "pickle", "torch.save"])
def test_hooks_of_a_copy_do_not_feed_the_original(clone):
    network, taps, images = tiny()
    if clone == "deepcopy":
        average = copy.deepcopy(network)
    elif clone == "pickle":
        average = pickle.loads(pickle.dumps(network))
    else:
        torch.save(network, file := io.BytesIO())
        file.seek(0)
        average = torch.load(file, weights_only=False)
    with taps.record() as features:
        logits = network(images)
        average.eval()(2 * images)
    assert torch.equal(network.fc(features.embedding), logits)
    with pytest.raises(TapError, match="gave nothing in this forward pass"), taps.record():
        average(images)
    own = Taps(average, plan_taps(average, 16))
    with own.record() as features:
        average(images)
    assert len(features.stages) == 3


def test_a_copy_of_network_and_taps_together_works_alone():
    learner = nn.Module()
    learner.network, learner.taps, images = tiny()
    twin = copy.deepcopy(learner)
    with learner.taps.record() as original, twin.taps.record() as copied:
        learner.network(images)
        twin.network(2 * images)
    assert torch.equal(learner.network.fc(original.embedding), learner.network(images))
    assert torch.equal(twin.network.fc(copied.embedding), twin.network(2 * images))


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("timm:resnet10t", "eager"),
        ("timm:test_vit", "aot_eager"),
        pytest.param("torchvision:resnet18", "aot_eager", marks=pytest.mark.sweep),
    ],
)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_feeds_taps_that_came_first(name, backend):
    arguments = {"img_size": 64} if "vit" in name else {}
    network = create_model(name, 5, **arguments)
    taps = Taps(network, plan_taps(network, 64))
    compiled = torch.compile(network, backend=backend, fullgraph=True)
    images = torch.randn(2, 3, 64, 64)
    for mode in (True, False, True):
        network.train(mode)
        for _ in range(2):
            with taps.record() as features:
                compiled(images)
            compiled(images)
    sum(tap.square().mean() for tap in features.stages).backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters() if weight.grad is not None)
    with torch.no_grad():
        network.eval()
        with taps.record() as eager:
            network(images)
        with taps.record() as features:
            compiled(images)
    for tap, expected in zip(features.stages, eager.stages, strict=True):
        torch.testing.assert_close(tap, expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_hooks_placed_after_the_first_compiled_call_stop_the_run():
    torch.manual_seed(0)
    network = create_model("cifar_resnet8", 5).eval()
    images = torch.randn(2, 3, 16, 16)
    compiled = torch.compile(network, backend="eager")
    compiled(images)
    taps = Taps(network, plan_taps(network, 16, "student"))
    with pytest.raises(TapError, match=r"student: the tap on layer1\.0\.relu .* before torch\.compile"), taps.record():
        compiled(images)


@pytest.mark.filterwarnings("ignore")
def test_a_network_in_ddp_feeds_taps_that_sit_inside(tmp_path):
    network, taps, images = tiny()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
        with taps.record() as features:
            logits = wrapped(images)
        (logits.sum() + sum(tap.mean() for tap in features.stages)).backward()
        with pytest.raises(TapError, match=r"student: layer1\.0\.relu lies under module\. here; .* before DDP"):
            Taps(wrapped, taps.plan)
    finally:
        torch.distributed.destroy_process_group()
    assert all(weight.grad is not None for weight in network.parameters())


class TestMistakes:
    def test_two_recordings_at_once(self):
        network, taps, images = tiny()
        with taps.record():
            with pytest.raises(TapError, match="student: its taps are recording already"):
                taps.record().__enter__()
            network(images)

    def test_two_forward_passes_in_one_recording(self):
        network, taps, images = tiny()
        with pytest.raises(TapError, match=r"layer1\.0\.relu .* fired 4 times, but .* has 2 calls"), taps.record():
            network(network(images)[:, :3, None, None].expand(2, 3, 16, 16))

    def test_a_module_that_is_bypassed(self):
        network, taps, images = tiny()
        with pytest.raises(TapError, match=r"layer3\.0\.relu .* gave nothing .*\(0 calls of 2\)"), taps.record():
            network.layer2(network.layer1(network.relu(network.bn1(network.conv1(images)))))

    @pytest.mark.slow
    def test_a_plan_of_another_network(self):
        network, _, _ = tiny()
        plan = plan_taps(create_model("torchvision:mobilenet_v2", 5), 32, "other")
        with pytest.raises(TapError, match=r"other: the plan taps features\.4.*, which CifarResNet does not have"):
            Taps(network, plan)

    def test_tokens_of_images_of_another_size(self):
        network = create_model("timm:test_vit", 5, img_size=64, dynamic_img_size=True)
        taps = Taps(network, plan_taps(network, 64, "student"))
        with pytest.raises(TapError, match=r"student: blocks\.1 gave 25 tokens, not 4 x 4"), taps.record():
            network(torch.randn(1, 3, 80, 80))

    def test_maps_of_images_of_another_size(self):
        network, taps, _ = tiny()
        line = r"student: layer1 gave 16@20x20, not 16@16x16; plan the taps for the size of the images"
        with pytest.raises(TapError, match=line), taps.record():
            network(torch.randn(2, 3, 20, 20))

    def test_a_module_that_is_now_called_by_keyword(self):
        network, taps, images = tiny()
        network.fc.forward = lambda input: input
        with pytest.raises(TapError, match=r"fc input gave nothing .*\(1 calls of 1\)"), taps.record():
            network.fc(input=network.avgpool(network.layer3(network.layer2(network.layer1(network.conv1(images))))))
