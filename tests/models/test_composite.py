"""A head in place of a network's last layer, whatever the network makes of that layer's results."""

import pytest
import torch

from distillery.distill.losses.cat import CATHead
from distillery.models import create_model
from distillery.models.composite import Composite
from distillery.models.taps import plan_taps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("cifar_resnet8", 32), ("torchvision:squeezenet1_1", 64), ("timm:levit_128s", 224), ("torchvision:vgg11", 32)],
)
def test_the_logits_are_the_heads_whatever_the_network_makes_of_its_last_layer(name, size):
    torch.manual_seed(0)
    network = create_model(name, 5).eval()
    images = torch.randn(2, 3, size, size)
    plan = plan_taps(network, size, name)
    layer = network.get_submodule(plan.classifier)
    taken = []
    hook = layer.register_forward_hook(lambda _, __, output: taken.append(output.clone()))
    head = CATHead(plan.features, 5)
    head.convolution.weight.data.copy_(layer.weight.reshape(5, -1, 1, 1))
    with torch.no_grad():
        network(images)
        hook.remove()
        composite = Composite(network, head, size, name).eval()
        logits_BC = composite(images)
    (output,) = taken
    pooled = output.mean(dim=(2, 3)) if output.ndim == 4 else output
    torch.testing.assert_close(logits_BC, pooled - layer.bias)
    assert not [key for key in composite.state_dict() if key.startswith(f"network.{plan.classifier}.")]
