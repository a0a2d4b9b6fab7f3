"""What a teacher without a classifier knows before it teaches: whether images of a class are near each other.

N validation images, M of them asked, D features, P pixels, B images of a batch.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distillery.accelerator import float64_device
from distillery.data.loader import Batch
from distillery.distill.collective import Collective
from distillery.evaluation.metrics import on
from distillery.evaluation.probe import nearest_neighbours

# Thousands of images tell a guess from knowledge.
MOST_ASKED = 5000
# An embedding that knows anything of photographs is better than so few pixels.
PIXELS = 8


class Neighbours(NamedTuple):
    """Of the images of which there is another of their class, those whose class their nearest others vote for.

    Attributes:
        asked: how many images; 0 where they are of one class, or of none twice, for then nothing can be told.
        right: by the embedding.
        right_by_pixels: by 8 x 8 pixels.
        guessing: the share that is right by naming one class always, from 0 to 1.
        finite: whether the embedding is.
    """

    asked: int
    right: int
    right_by_pixels: int
    guessing: float
    finite: bool


@torch.no_grad()
def ask_neighbours(
    embed: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    classes: int,
    device: torch.device,
    collective: Collective,
) -> Neighbours:
    """Ask at most 5,000 images, always the same ones, for their class among all others: leave one out, no training.

    Args:
        embed: uint8 images (B, 3, H, W) on the device to embeddings (B, D).
        loader: this process's share of the images, in order.
        classes: how many the data set has.
        device: where the network is.
        collective: the processes that have the other shares.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in loader:
        images = on(batch.images, device)
        small_BP = F.adaptive_avg_pool2d(images.float(), PIXELS).flatten(1)
        parts.append((embed(images).float().flatten(1), small_BP, on(batch.labels, device)))
    own = [torch.cat(part) for part in zip(*parts, strict=True)]
    embedding_ND, pixels_NP, labels_N = (collective.all_gather(part)[0].to(float64_device(device)) for part in own)
    counts_C = labels_N.bincount(minlength=classes)
    askable_N = (counts_C[labels_N] > 1).nonzero()[:, 0]
    asked = min(len(askable_N), MOST_ASKED)
    drawn = torch.randperm(len(askable_N), generator=torch.Generator().manual_seed(0))
    asked_M = askable_N[drawn[:asked].to(labels_N.device)]
    truth_M = labels_N[asked_M]
    finite = bool(embedding_ND.isfinite().all())
    largest = int(truth_M.bincount(minlength=1).max())
    if largest == asked:
        return Neighbours(0, 0, 0, 0.0, finite)

    def right(rows_ND: Tensor) -> int:
        found_M = nearest_neighbours(rows_ND, labels_N, rows_ND[asked_M], classes, own_M=asked_M)
        return int((found_M == truth_M).sum())

    return Neighbours(
        asked=asked,
        right=right(embedding_ND),
        right_by_pixels=right(pixels_NP - pixels_NP.mean(dim=0)),
        guessing=largest / asked,
        finite=finite,
    )
