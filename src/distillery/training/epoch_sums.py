"""Sums over an epoch's images.

B batch, C classes.
"""

import math
from itertools import islice
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from distillery.accelerator import float64_device, wide


class StepValues(NamedTuple):
    """What a micro-batch gave: its step, the terms' values, the images' sample ids (B,)."""

    step: int
    values: dict[str, Tensor]
    indices_B: Tensor


class Recent:
    """Some micro-batches, those since the last look for instance; as many on every rank."""

    def __init__(self, seen: list[StepValues]) -> None:
        self.seen = seen

    def values(self) -> Tensor:
        """What each micro-batch gave: float64 (micro-batches, names)."""
        flat = torch.stack([value.float() for each in self.seen for value in each.values.values()])
        return wide(flat).view(len(self.seen), -1)

    def first_broken(self) -> str:
        """The first step with a value that is no finite number, in words; "" if all are."""
        broken = next((each for each in self.seen if not all(map(_is_finite, each.values.values()))), None)
        if broken is None:
            return ""
        terms = [f"{name} {value.item()}" for name, value in broken.values.items() if not _is_finite(value)]
        # The sum says no more than the terms of which it is the sum.
        terms = [text for text in terms if not text.startswith("loss ")] or terms
        ids = ", ".join(map(str, broken.indices_B[:8].tolist()))
        more = f" and {len(broken.indices_B) - 8} more" if len(broken.indices_B) > 8 else ""
        return f"step {broken.step + 1}: {', '.join(terms)}; sample ids {ids}{more}"


def _is_finite(value: Tensor) -> bool:
    return bool(value.isfinite())


class EpochSums:
    """Sums over an epoch's images. Micro-batches wait on the device until a sum is asked for: no step adds or waits."""

    def __init__(self, totals: dict[str, float]) -> None:
        self.recent: list[StepValues] = []  # since they were last looked at
        self._waiting: list[tuple[dict[str, Tensor], Tensor, int]] = []  # values, which are right (B,), images
        self.images = totals.get("images", 0.0)
        self.labelled = totals.get("labelled", self.images)
        self._sums = {name: value for name, value in totals.items() if name not in ("images", "labelled")}

    def add(
        self,
        step: int,
        values: dict[str, Tensor],
        logits_BC: Tensor,
        target: Tensor,
        indices_B: Tensor,
        labelled: Tensor | None = None,
    ) -> None:
        """Count one micro-batch, of which the rows ``labelled`` have labels, or all."""
        detached = {name: value.detach() for name, value in values.items()}
        self.recent.append(StepValues(step, detached, indices_B))
        images = logits_BC.shape[0]
        hard_B = target if target.ndim == 1 else target.argmax(dim=1)
        self.images += images
        self.labelled += images if labelled is None else len(labelled)
        self._waiting.append((detached, logits_BC.argmax(dim=1) == hard_B, images))

    @property
    def sums(self) -> dict[str, float]:
        """Of each value times its images, and of the images that were told rightly, in float64 and in their order."""
        if self._waiting:
            right = torch.cat([right_B for _, right_B, _ in self._waiting]).sum()
            parts = {"correct": wide(right)[None]}
            for name in self._waiting[0][0]:
                values = torch.stack([values[name] for values, _, _ in self._waiting])
                images = torch.tensor([images for _, _, images in self._waiting], dtype=values.dtype)
                parts[name] = wide(values * images.to(values.device))
            # One transfer for all.
            numbers = iter(torch.cat(list(parts.values())).tolist())
            for name, part in parts.items():
                for number in islice(numbers, len(part)):
                    self._sums[name] = self._sums[name] + number if name in self._sums else number
            self._waiting = []
        return self._sums

    def take_recent(self) -> "Recent":
        """What was counted since the last call."""
        recent, self.recent = self.recent, []
        return Recent(recent)

    def totals(self) -> dict[str, float]:
        """The sums as exact Python numbers."""
        return {"images": self.images, "labelled": self.labelled, **self.sums}

    def means(self) -> dict[str, float]:
        """The epoch's means so far; NaN before the first step, ``top1`` only if any of its images has a label."""
        top1 = {"top1": 100 * self.sums["correct"] / self.labelled} if self.labelled else {}
        return {"loss": self.sums["loss"] / self.images if self.images else math.nan, **top1}


def totals_of_ranks(fabric: Fabric, totals: dict[str, float]) -> list[dict[str, float]]:
    """The totals of every rank, in their order, on all ranks."""
    names = sorted(totals)
    local = torch.tensor([totals[name] for name in names], dtype=torch.float64, device=float64_device(fabric.device))
    gathered = fabric.all_gather(local) if fabric.world_size > 1 else local[None]
    assert isinstance(gathered, Tensor)
    return [dict(zip(names, values, strict=True)) for values in gathered.tolist()]


def totals_of_rank(fabric: Fabric, saved: list[dict[str, float]]) -> dict[str, float]:
    """With which totals this rank goes on: its own, or, where there were more or fewer ranks, the first one with all.

    Its own, because adding up in another order rounds differently.
    """
    if len(saved) == fabric.world_size:
        return saved[fabric.global_rank]
    return added(saved) if fabric.is_global_zero else {}


def added(totals: list[dict[str, float]]) -> dict[str, float]:
    """The sums over all ranks."""
    return {name: math.fsum(each[name] for each in totals) for name in (totals[0] if totals else {})}
