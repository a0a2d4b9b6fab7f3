"""First weights where those of a borrowed class are not those of the network that is meant."""

from torch import nn

from distillery.errors import UserError
from distillery.models.pretrained.load import classifier_modules


def draw_as_torch(network: nn.Module) -> None:
    """Draw all weights as torch's layers do by themselves: uniform within 1 / sqrt(fan-in); batch norms 1 and 0."""
    for module in network.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def draw_as_he(network: nn.Module) -> None:
    """Draw convolutions from He's normal distribution (variance 2 / fan-out); batch norms 1 and 0, linear biases 0."""
    draw_as_torch(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def draw_classifier(network: nn.Module, std: float) -> None:
    """Draw the layers that make the logits from N(0, ``std``²), with biases 0; all other weights stay as they are.

    Random weights come from torch's global generator.

    Raises:
        UserError: the network's logits are not made by linear layers or convolutions.
    """
    known = classifier_modules(network)
    layers = [
        layer for name, layer in network.named_modules() if name in known and isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    if not layers:
        raise UserError(f"classifier_std: {type(network).__name__} has no last layer to draw; remove this key")
    for layer in layers:
        nn.init.normal_(layer.weight, 0.0, std)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
