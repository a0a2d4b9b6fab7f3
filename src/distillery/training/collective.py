"""What a term can ask of all processes, by torch.distributed."""

import torch
import torch.distributed as dist
from torch import Tensor

from distillery.distill.collective import Collective


class Ranks(Collective):
    """Speaks for all processes of a run."""

    @torch.no_grad()
    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate every rank's rows; ranks may hold unequal numbers of them."""
        counts = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(dist.get_world_size())]
        dist.all_gather(counts, torch.tensor([len(tensor)], device=tensor.device))
        rows = [int(count) for count in counts]
        padded = tensor.new_zeros(max(rows), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        start = sum(rows[: dist.get_rank()])
        return torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]), slice(
            start, start + len(tensor)
        )

    @torch.no_grad()
    def sum(self, tensor: Tensor) -> Tensor:
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
