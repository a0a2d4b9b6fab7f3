"""PS-KD: self-knowledge distillation with progressive refinement of targets (Kim et al., ICCV 2021).

B batch (N over all processes), M training images, C classes.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from distillery.distill.collective import last_rows
from distillery.distill.precision import full_precision
from distillery.distill.step import StepInputs
from distillery.distill.term import Term, TermContext

# Beyond so many bytes, what was predicted stays in the CPU's memory, whatever trains.
LARGEST_ON_DEVICE = 2**30


def pskd_alpha(alpha: float, epoch: int, epochs: int) -> float:
    """How much of a target is the past prediction, in an epoch counted from 0: it rises linearly to ``alpha``."""
    return alpha * (epoch + 1) / epochs


@full_precision
def pskd_loss(logits: Tensor, labels: Tensor, past: Tensor, alpha: float) -> Tensor:
    """Cross-entropy with the targets ``(1 - alpha) onehot + alpha past``, a scalar: the batch mean (PS-KD-Pytorch).

    Args:
        logits: (B, C).
        labels: class indices, (B,).
        past: what the network predicted when it last saw the image, rows of sum 1, (B, C); detached.
        alpha: the past's share, in [0, 1].
    """
    onehot_BC = F.one_hot(labels, logits.shape[1]).to(past.dtype)
    return F.cross_entropy(logits, (1 - alpha) * onehot_BC + alpha * past.detach())


class PSKD(Term):
    """The term ``pskd``, in place of cross-entropy: labels are softened by what was predicted of the image before.

    The last prediction for every training image is part of the state, and equal on all ranks.
    """

    own_buffers = ("past", "nothing")

    def __init__(self, alpha: float = 0.8) -> None:
        super().__init__()
        self.alpha = alpha
        self.pending: list[tuple[Tensor, Tensor]] = []

    def setup(self, context: TermContext) -> None:
        """Make the predictions: rows of zeros, for no image was seen yet."""
        self.collective, self.epochs = context.collective, context.epochs
        self.register_buffer("past", torch.zeros(len(context.labels), context.classes))
        # What a process without a labelled image has to remember, on the device that it trains on.
        self.register_buffer("nothing", torch.zeros(0, context.classes), persistent=False)

    def forward(self, inputs: StepInputs) -> Tensor:
        """Return the batch mean; what is predicted is remembered at the step's end."""
        assert inputs.indices_B is not None
        logits_BC, epoch = inputs.student.logits_BC, int(inputs.epoch)
        past = self.get_buffer("past")
        past_BC = past[inputs.indices_B.to(past.device)].to(logits_BC)
        # In the first epoch, and when it sees an image for the first time, the network has no past but the label.
        seen_B1 = (past_BC.sum(dim=1, keepdim=True) > 0) & (epoch > 0)
        past_BC = torch.where(seen_B1, past_BC, F.one_hot(inputs.target, logits_BC.shape[1]).to(past_BC.dtype))
        self.pending.append((inputs.indices_B, logits_BC.detach().softmax(dim=1)))
        return pskd_loss(logits_BC, inputs.target, past_BC, pskd_alpha(self.alpha, epoch, self.epochs))

    @torch.no_grad()
    def end_step(self) -> None:
        """Remember the step's predictions, of all ranks and micro-batches; for an image seen twice, the last counts."""
        past, nothing = self.get_buffer("past"), self.get_buffer("nothing")
        numbers = torch.arange(len(self.pending), device=nothing.device)
        sizes = torch.tensor([len(rows) for rows, _ in self.pending], device=nothing.device, dtype=torch.long)
        local = (
            numbers.repeat_interleave(sizes),
            *(torch.cat(parts) for parts in zip((nothing[:, 0].long(), nothing), *self.pending, strict=True)),
        )
        self.pending = []
        micro_N, indices_N, predicted_NC = (self.collective.all_gather(rows)[0] for rows in local)
        # The order in which one process would have seen them: by micro-batch, rank, row.
        order = torch.argsort(micro_N, stable=True)
        rows = order[last_rows(indices_N[order])]
        # A step that mixed precision skips must not be remembered.
        rows = rows[predicted_NC[rows].isfinite().all(dim=1)]
        past[indices_N[rows].to(past.device)] = predicted_NC[rows].to(past)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Move and cast the module, but leave large predictions where they are."""
        past = self._buffers.get("past")
        if past is None or past.nbytes <= LARGEST_ON_DEVICE:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        self._buffers["past"] = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._buffers["past"] = past
        return self
