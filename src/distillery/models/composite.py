"""A student that is deployed with parts of a term: a network and the head that makes its logits.

B batch, C classes.
"""

from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn

from distillery.experiment.schema.objective import Kind, term_options
from distillery.models.taps import Features, TapError, Taps, plan_taps


class Head(nn.Module, ABC):
    """Makes logits of a network's features.

    ``kinds`` names the features that it takes. ``arguments`` are the keyword arguments, plain numbers and words, with
    which its class builds it again before its weights are loaded.
    """

    kinds: ClassVar[frozenset[Kind]]

    def __init__(self, **arguments: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.arguments = arguments

    @abstractmethod
    def forward(self, features: Features) -> tuple[Tensor, Tensor]:
        """Return logits (B, C), and what they were made of, which terms may see in training."""


class Composite(nn.Module):
    """A network whose logits come from a head on its features, in place of its own last linear layer.

    It is trained, averaged, measured, profiled and saved as one. Taps on the network that look at its last linear layer
    are to be placed afterwards, for that layer is taken out.
    """

    def __init__(self, network: nn.Module, head: Head, input_size: int, name: str) -> None:
        super().__init__()
        plan = plan_taps(network, input_size, name)
        if plan.classifier is None:
            raise TapError(f"{name}: no module of it is its last linear layer, which a head could replace")
        network.set_submodule(plan.classifier, _Silent(network.get_submodule(plan.classifier)))
        self.network, self.head = network, head
        self.taps = Taps(network, plan, head.kinds)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the head's logits (B, C) for normalised images (B, 3, H, W)."""
        return self.run(pixels)[0]

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and what the head made them of."""
        with self.taps.record() as features:
            self.network(pixels)
        logits_BC, made_of = self.head(features)
        return logits_BC, made_of

    def no_weight_decay(self) -> set[str]:
        """What the network itself exempts."""
        return {f"network.{name}" for name in getattr(self.network, "no_weight_decay", set)()}


class _Silent(nn.Module):
    """Gives zeros for a last layer's results: networks make something of these, and some have two such layers."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        weight = classifier.weight
        assert isinstance(weight, Tensor)
        self.classes, self.channel_dim = len(weight), 1 if weight.ndim == 4 else -1

    def forward(self, features: Tensor) -> Tensor:
        """Return zeros."""
        shape = list(features.shape)
        shape[self.channel_dim] = self.classes
        return features.new_zeros(shape)


def with_head(network: nn.Module, record: dict[str, Any], input_size: int, name: str) -> nn.Module:
    """Put the head that a run.json names, if it names one, on a network; its weights are still to be loaded."""
    if "head" not in record:
        return network
    path = term_options(record["head"]["term"]).head
    assert path is not None
    module, _, head = path.partition(":")
    return Composite(network, getattr(import_module(module), head)(**record["head"]["arguments"]), input_size, name)
