"""First weights where those of a borrowed class are not those of the network that is meant."""

from torch import nn


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
