"""How a term talks to the other processes of a run, without knowing about processes.

Terms are given a ``Collective``; alone, nothing is exchanged. The training room supplies one that speaks for all ranks.
"""

from torch import Tensor


class Collective:
    """A run of one process: everything is already here."""

    def gather(self, tensor: Tensor) -> tuple[Tensor, slice]:
        """Concatenate every rank's rows, shape (B, ...), without gradient; say which rows are one's own."""
        return tensor.detach(), slice(0, len(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over the ranks, without gradient."""
        return tensor.detach()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor."""
        return tensor
