"""What a plan of taps says: which tensors of a network are its stages' features, and where hooks can take them.

B batch, C channels, H height, W width, N tokens, D features.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from distillery.errors import UserError

Side = Literal["input", "output"]
Layout = Literal["BCHW", "BHWC", "BNC"]
Found = Literal["table", "feature_info", "traced"]


class TapError(UserError):
    """A tap cannot be planned, cannot be placed, or did not give the tensor that was planned."""


@dataclass(frozen=True)
class Source:
    """One tensor at the boundary of a module.

    Attributes:
        module: dotted path in the network as it was built, without the prefixes of DDP or ``torch.compile``.
        side: whether the tensor enters the module or leaves it.
        item: its position among the positional arguments, or in the tuple that the module returns.
        call: which call of the module in one forward pass, from 1; a ResNet block calls its one ReLU up to three times.
        calls: how many calls there are.
        overwritten: the network later updates this tensor in place, so a tap must copy it.
        norm: path of the batch norm whose output this tensor is, or to whose output a shortcut was added; else None.
        channels: size of the channel dimension.
    """

    module: str
    side: Side
    item: int
    call: int
    calls: int
    overwritten: bool
    norm: str | None
    channels: int

    def __str__(self) -> str:
        """As ``layer1.2.relu input 3/3``, the input of the third of three calls; ``layer1 output`` if there is one."""
        return f"{self.module} {self.side}" + (f" {self.call}/{self.calls}" if self.calls > 1 else "")


@dataclass(frozen=True)
class TapPoint:
    """The feature map at one stage's end, before its activation where it has one.

    Attributes:
        stage: 0-based position among the plan's stages.
        name: path of the module that ends the stage, for people; the tensor itself comes from ``sources``.
        sources: where hooks take the tensor. More than one where a stage ends by concatenating activated tensors: their
            pre-activations are then concatenated along the channels.
        order: for every channel of the feature its channel in the concatenated sources; None where they agree.
        layout: how the network holds the tensor: "BCHW", "BHWC" or "BNC".
        prefix_tokens: tokens before the image's ("BNC" only): class, distillation and register tokens.
        channels: C of the feature that the objectives see, (B, C, H, W).
        height: H at the plan's input size.
        width: W at the plan's input size.
        activation: the activation that follows the tapped tensor, such as "relu", or None.
        raw: where hooks take the value that the stage hands on to the next: after the activation where the stage ends
            with one, neither normed nor rectified in pre-activation networks.
        activated: where hooks take what the activation makes of the tapped tensor; None where none follows, or where no
            module takes or returns it.
    """

    stage: int
    name: str
    sources: tuple[Source, ...]
    order: tuple[int, ...] | None
    layout: Layout
    prefix_tokens: int
    channels: int
    height: int
    width: int
    activation: str | None
    raw: Source | None = None
    activated: Source | None = None

    @property
    def norms(self) -> tuple[str, ...] | None:
        """Paths of the batch norms that feed the sources, in their order; None unless every source has one."""
        found = tuple(source.norm for source in self.sources if source.norm is not None)
        return found if len(found) == len(self.sources) else None

    @property
    def shape(self) -> str:
        """Channels and size for people: ``256@56x56``."""
        return f"{self.channels}@{self.height}x{self.width}"


@dataclass(frozen=True)
class TapPlan:
    """The taps of one network.

    Attributes:
        model: the network's name.
        input_size: side in pixels of the square images for which the sizes of ``points`` hold.
        found: who named the stages: our "table", timm's "feature_info", or the network's "traced" run.
        points: one tap a stage, from the images to the logits.
        embedding: what enters the layer that makes the logits, or None where that is not wanted.
        features: D of the embedding.
        classifier: path of the last linear layer, which takes the embedding; None if its weights are no module's.
        averaged: the map whose mean over the pixels is the embedding; None where there is none.
        last: the map that the embedding is made of: the averaged one, or what the norms and activations after the last
            stage make of its map; where that is one pixel, what the last stage of more pixels hands on. None where no
            hook sees it.
        unpaired: all of its stages' points, also where ``points`` are only those that have a partner.
    """

    model: str
    input_size: int
    found: Found
    points: tuple[TapPoint, ...]
    embedding: Source | None
    features: int
    classifier: str | None = None
    averaged: TapPoint | None = None
    last: TapPoint | None = None
    unpaired: tuple[TapPoint, ...] = ()


def norm_affine(model: nn.Module, point: TapPoint) -> tuple[Tensor, Tensor] | None:
    """Scale and shift (C,), (C,) of the batch norms that feed a tap, in the order of the tap's channels.

    They are read from ``model`` as it is now, so ask after its weights were loaded. A batch norm without parameters
    counts as scale 1 and shift 0. None where a source of the tap is fed by no batch norm: a margin computed from scale
    and shift (E[x | x < 0] of a normal distribution) has no meaning there.
    """
    if point.norms is None:
        return None
    gammas, betas = [], []
    for path in point.norms:
        norm = model.get_submodule(path)
        gamma, beta, running_mean = norm.weight, norm.bias, norm.running_mean
        assert isinstance(running_mean, Tensor)
        gammas.append(gamma.detach().clone() if isinstance(gamma, Tensor) else torch.ones_like(running_mean))
        betas.append(beta.detach().clone() if isinstance(beta, Tensor) else torch.zeros_like(running_mean))
    gamma_C, beta_C = torch.cat(gammas), torch.cat(betas)
    if point.order is not None:
        order = torch.tensor(point.order, device=gamma_C.device)
        gamma_C, beta_C = gamma_C[order], beta_C[order]
    return gamma_C, beta_C
