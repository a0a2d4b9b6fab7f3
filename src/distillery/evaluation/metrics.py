"""Accuracy, calibration and agreement over a whole split, each image counted once.

All of it is sums over images, kept in float64 on the device and added over processes once, at the end: nothing waits in
between, and the order of images, batches and processes cannot matter. A metrics library would do as well but takes
longer to import than a small network takes to evaluate; the tests hold these numbers against one.

B batch, C classes, M bins.
"""

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

BINS = 15

Predict = Callable[[Tensor], Tensor]


class LabelledImages(Protocol):
    """One batch: uint8 images (B, 3, H, W), their labels (B,) and their ids (B,)."""

    @property
    def images(self) -> Tensor:
        """Pixels."""

    @property
    def labels(self) -> Tensor:
        """Class indices."""

    @property
    def indices(self) -> Tensor:
        """Positions in the split."""


@torch.no_grad()
def evaluate_model(
    predict: Predict,
    loader: Iterable[LabelledImages],
    num_classes: int,
    device: torch.device,
    teacher_predict: Predict | None = None,
    teacher_loader: Iterable[LabelledImages] | None = None,
) -> dict[str, float]:
    """Measure a network on every image of a loader; on those of all processes where there are several.

    Args:
        predict: uint8 images (B, 3, H, W) on ``device`` to logits (B, C).
        loader: batches of this process's share of the images.
        num_classes: C.
        device: where images go.
        teacher_predict: likewise for the network whose predictions are to be compared.
        teacher_loader: the same images in the same batches as the teacher wants them prepared; by default the
            teacher sees what the network sees.

    Returns:
        ``images``: how many. ``top1``, ``top5``: images whose label is among the 1 and the min(5, C) highest scores,
        in percent. ``nll``: mean cross-entropy in nats. ``ece``: expected calibration error (Guo et al. 2017, On
        Calibration of Modern Neural Networks, equation 3) over 15 bins of equal width, in percent. ``agreement``, with
        a teacher: images on which both predict the same class, in percent.
    """
    sums = _Sums(num_classes, device)
    for batch, teacher_batch in _pairs(loader, teacher_loader):
        logits_BC = predict(_on(batch.images, device)).float()
        teacher_logits_BC = None
        if teacher_predict is not None:
            teacher_logits_BC = teacher_predict(_on(teacher_batch.images, device)).float()
        sums.add(logits_BC, _on(batch.labels, device), teacher_logits_BC)
    measured = sums.metrics()
    if teacher_predict is None:
        del measured["agreement"]
    return measured


class _Sums:
    """The sums that all metrics are made of."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.top = min(5, num_classes)
        # images, correct, correct among the top, negative log-likelihood, agreeing with the teacher
        self.scalars = torch.zeros(5, dtype=torch.float64, device=device)
        # images, confidence and correct of each bin
        self.bins_3M = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, logits_BC: Tensor, labels_B: Tensor, teacher_logits_BC: Tensor | None) -> None:
        """Count one batch."""
        best_BK = logits_BC.topk(self.top, dim=1).indices
        hits_BK = best_BK == labels_B[:, None]
        correct_B = hits_BK[:, 0].double()
        nll = F.cross_entropy(logits_BC.double(), labels_B, reduction="sum")
        agree_B = torch.zeros_like(correct_B)
        if teacher_logits_BC is not None:
            agree_B = (best_BK[:, 0] == teacher_logits_BC.argmax(dim=1)).double()
        images = torch.full_like(nll, len(labels_B))
        self.scalars += torch.stack([images, correct_B.sum(), hits_BK.sum().double(), nll, agree_B.sum()])
        confidence_B = logits_BC.double().softmax(dim=1).gather(1, best_BK[:, :1]).squeeze(1)
        # Bin m holds the confidences in (m / M, (m + 1) / M].
        bin_B = (confidence_B * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins_3M.index_add_(1, bin_B, torch.stack([torch.ones_like(confidence_B), confidence_B, correct_B]))

    def metrics(self) -> dict[str, float]:
        """Add the sums over processes and turn them into means."""
        total = torch.cat([self.scalars, self.bins_3M.flatten()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        total = total.cpu()
        images, correct, among_top, nll, agreeing = total[: len(self.scalars)].tolist()
        assert images > 0, "nothing to evaluate"
        _, confidence_M, correct_M = total[len(self.scalars) :].view(3, BINS)
        return {
            "images": images,
            "top1": 100 * correct / images,
            "top5": 100 * among_top / images,
            "nll": nll / images,
            "ece": 100 * (confidence_M - correct_M).abs().sum().item() / images,
            "agreement": 100 * agreeing / images,
        }


def _pairs(
    loader: Iterable[LabelledImages], teacher_loader: Iterable[LabelledImages] | None
) -> Iterable[tuple[LabelledImages, LabelledImages]]:
    if teacher_loader is None:
        for batch in loader:
            yield batch, batch
        return
    for batch, teacher_batch in zip(loader, teacher_loader, strict=True):
        assert torch.equal(batch.indices, teacher_batch.indices), "the loaders give different images"
        yield batch, teacher_batch


def _on(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
