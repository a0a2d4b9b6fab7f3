"""How a term talks to the other processes of a run, without knowing about processes. Nothing here carries gradients."""

import torch
import torch.distributed as dist
from torch import Tensor


class Collective:
    """A run of one process: everything is already here.

    Attributes:
        size: how many processes there are.
        rank: which of them this is, from 0.
    """

    size = 1
    rank = 0

    def all_gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate every rank's rows, shape (B, ...), in the order of the ranks; say which rows are one's own."""
        return tensor.detach(), slice(0, len(tensor))

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks."""
        return tensor.detach()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor."""
        return tensor


def last_rows(numbers_N: Tensor) -> Tensor:
    """The row at which each number occurs last, by ascending number; the same on every device."""
    order = torch.argsort(numbers_N, stable=True)
    ordered = numbers_N[order]
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    return order[last]


class ProcessGroup(Collective):
    """The processes of a run, by torch.distributed's default group."""

    def __init__(self) -> None:
        self.size, self.rank = dist.get_world_size(), dist.get_rank()

    @torch.no_grad()
    def all_gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate every rank's rows; ranks may hold unequal numbers of them."""
        counts = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
        rows = [int(count) for count in counts]
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        start = sum(rows[: dist.get_rank()])
        own = slice(start, start + len(tensor))
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]), own

    @torch.no_grad()
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Add up over the ranks."""
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    @torch.no_grad()
    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor."""
        sent = tensor.clone()
        dist.broadcast(sent, src=0)
        return sent
