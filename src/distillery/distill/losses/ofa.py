"""OFA-KD: one for all, between any two kinds of networks (Hao et al., NeurIPS 2023).

B batch, C classes, D features, H W pixels, N tokens, P of them in front of the image's.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distillery.distill.losses.logits import LogitTerm, hard_labels
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import OwnStage, TermContext
from distillery.errors import UserError
from distillery.experiment.stages import projected_stages

# Tokens are merged while their grid's side is at least twice this.
FINAL_GRID = 7


@full_precision
def ofa_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    eps: float = 1.0,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """Batch mean of ``-sum_c w_c log p_s[c]``, a scalar: cross-entropy with the teacher where ``eps`` is 1.

    With p a network's probabilities at ``temperature`` and y the label, ``w_c = p_t[c]^eps`` for all c but y, and
    ``w_y = (1 + p_t[y])^eps - 1``.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C); detached.
        target: class indices (B,), or soft targets (B, C), whose largest entry is the label.
        eps: above 0; above 1 it stresses the label.
        temperature: above 0, on both sides; the loss is not multiplied by its square.
    """
    label_B = hard_labels(target)
    teacher_BC = F.softmax(teacher_logits.detach() / temperature, dim=1)
    of_label = torch.expm1(eps * torch.log1p(teacher_BC.gather(1, label_B[:, None])))
    weight_BC = teacher_BC.pow(eps).scatter(1, label_B[:, None], of_label)
    return -(weight_BC * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean()


class SeparableHalving(nn.Module):
    """Two depthwise separable convolutions, the first of stride 2, each with a batch norm and a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()

        def separable(stride: int, outputs: int) -> list[nn.Module]:
            return [
                nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(),
            ]

        self.op = nn.Sequential(*separable(2, inputs), *separable(1, outputs))

    def forward(self, map_BCHW: Tensor) -> Tensor:
        """Return a map of half the height and width."""
        halved: Tensor = self.op(map_BCHW)
        return halved


class Merge(nn.Module):
    """Every 2 x 2 tokens of a grid become one: joined, normed, and taken to another width."""

    def __init__(self, grid: tuple[int, int], inputs: int, outputs: int, activate: bool) -> None:
        super().__init__()
        self.grid, self.activate = grid, activate
        self.norm = nn.LayerNorm(4 * inputs)
        self.reduction = nn.Linear(4 * inputs, outputs, bias=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return a quarter of the tokens."""
        grid_BHWD = tokens_BND.reshape(len(tokens_BND), *self.grid, -1)
        places = [grid_BHWD[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged: Tensor = self.reduction(self.norm(torch.cat(places, dim=3).flatten(1, 2)))
        return F.gelu(merged) if self.activate else merged


class PatchTokens(nn.Module):
    """Applies ``fn`` to the image's tokens and joins those in front again."""

    def __init__(self, prefix: int, fn: nn.Module) -> None:
        super().__init__()
        self.prefix, self.fn = prefix, fn

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return the tokens in front, and what became of the others."""
        patches: Tensor = self.fn(tokens_BND[:, self.prefix :])
        return torch.cat([tokens_BND[:, : self.prefix], patches], dim=1) if self.prefix else patches


class Summary(nn.Module):
    """The tokens in front, one after the other; the mean of all where there are none."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return (B, D max(P, 1))."""
        return tokens_BND[:, : self.prefix].flatten(1) if self.prefix else tokens_BND.mean(dim=1)


def map_projector(channels: int, later: int, features: int, classes: int) -> nn.Sequential:
    """From a stage's map (B, ``channels``, H, W) to logits; ``later`` stages come after it."""
    blocks: list[nn.Module] = []
    for block in range(later):
        inputs = channels * 2**block
        blocks.append(SeparableHalving(inputs, features if block == later - 1 else 2 * inputs))
    if not later:
        blocks.append(nn.Conv2d(channels, features, 1))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes))


def token_projector(stage: OwnStage, later: int, features: int, classes: int, heads: int) -> nn.Sequential:
    """From a stage's tokens (B, N, D) to logits; ``later`` stages come after it."""
    from timm.models.vision_transformer import Block

    prefix, grid, width = stage.prefix_tokens or 0, stage.size, stage.channels
    wanted, grids = max(int(math.log2(min(grid) / FINAL_GRID)), 0), [grid]
    while len(grids) <= wanted and not any(side % 2 for side in grids[-1]):
        grids.append((grids[-1][0] // 2, grids[-1][1] // 2))
    # Tokens in front keep the width of their stage, and so must those that they are joined with.
    merged = width if prefix else features
    merges: list[nn.Module] = []
    for number, before in enumerate(grids[:-1]):
        activate = number == 0 or number < len(grids) - 2
        merges.append(Merge(before, width, merged, activate))
        width = merged
    blocks = [
        Block(width, math.gcd(heads, width), norm_layer=nn.LayerNorm)  # eps 1e-5, as in the timm that the authors used
        for _ in range(max(later, 1))
    ]
    return nn.Sequential(
        PatchTokens(prefix, nn.Sequential(*merges)),
        nn.Sequential(*blocks),
        Summary(prefix),
        nn.Linear(width * max(prefix, 1), classes),
    )


def draw_projector(projector: nn.Module) -> None:
    """Draw convolutions from He's normal distribution by their outputs, linear layers from one of deviation 0.02."""
    for module in projector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class OFA(LogitTerm):
    """The term ``ofa``: the student's logits, and logits of each of its stages, learn from the teacher's.

    Each stage has a projector to logits, trained with the student and used for nothing else: convolutions where the
    student has maps, transformer blocks where it has tokens.
    """

    def __init__(
        self,
        eps: float | Sequence[float] = 1.0,
        temperature: float | Mapping[str, float] = 1.0,
        standardize: bool = False,
        stages: tuple[int, ...] | None = None,
        heads: int = 4,
    ) -> None:
        super().__init__(temperature, standardize)
        self.given, self.stages, self.heads = eps, stages, heads

    def setup(self, context: TermContext) -> None:
        """Make each stage's projector."""
        count = len(context.student_stages)
        stages, self.eps = projected_stages(count, self.stages, self.given)
        self.projectors, self.last = nn.ModuleDict(), count - 1
        for stage in stages:
            own, later = context.student_stages[stage], self.last - stage
            if own.prefix_tokens is None:
                widest = max(context.student_features, context.teacher_features)
                projector = map_projector(own.channels, later, widest, context.classes)
            else:
                projector = token_projector(own, later, context.student_features, context.classes, self.heads)
            draw_projector(projector)
            self.projectors[str(stage)] = projector

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the sum of the losses of all stages and of the logits."""
        student_BC, teacher_BC = self.logits(inputs)
        logits = [
            self.seen(projector(self._checked(inputs.student.unpaired[int(stage)], stage)))
            for stage, projector in self.projectors.items()
        ]
        heads = zip([*logits, student_BC], self.eps, strict=True)
        temperature = self.temperature_at(inputs.epoch)
        return torch.stack([ofa_loss(head, teacher_BC, inputs.target, eps, temperature) for head, eps in heads]).sum()

    def _checked(self, feature: Tensor, stage: str) -> Tensor:
        later = self.last - int(stage)
        pixels = feature.shape[2:] if feature.ndim == 4 else ()
        if self.training and later and pixels and len(feature) == 1 and max(pixels) <= 2**later:
            raise UserError(
                f"batch: ofa's batch norms over stage {stage} take more than one image of one pixel; raise `batch`, or "
                "set `drop_last: true`"
            )
        return feature
