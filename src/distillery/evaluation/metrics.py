"""Accuracy, calibration and agreement over a whole split, each image counted once.

All of it is sums over images, kept in float64 on the device and added over processes once, at the end: nothing waits in
between, and the order of images, batches and processes cannot matter. A metrics library would do as well but takes
longer to import than a small network takes to evaluate; the tests hold these numbers against one.

An entry of ``METRICS`` is all that a metric is; with a column of its name it may stand in tables.

B batch, C classes, K the highest scores, M bins.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

TOP = 5
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


class Predictions(NamedTuple):
    """What a network says of a batch, and what is right; ``best_BK`` are the classes of its highest scores."""

    logits_BC: Tensor
    labels_B: Tensor
    best_BK: Tensor
    teacher_logits_BC: Tensor | None


class Metric(NamedTuple):
    """A number made of sums over images.

    ``add`` counts a batch into the float64 sums of this ``shape``, which begin with zeros; ``result`` turns the sums
    over all images, on the CPU, and the number of images into the metric.
    """

    add: Callable[[Tensor, Predictions], object]
    result: Callable[[Tensor, float], float]
    shape: tuple[int, ...] = ()
    needs_teacher: bool = False


def _percent(total: Tensor, images: float) -> float:
    return 100 * total.item() / images


def _mean(total: Tensor, images: float) -> float:
    return total.item() / images


def _add_agreements(total: Tensor, batch: Predictions) -> None:
    assert batch.teacher_logits_BC is not None
    total += (batch.best_BK[:, 0] == batch.teacher_logits_BC.argmax(dim=1)).sum()


def _add_to_bins(total_3M: Tensor, batch: Predictions) -> None:
    """Count images, confidence and correct ones of each bin; bin m holds the confidences in (m / M, (m + 1) / M]."""
    best_B1 = batch.best_BK[:, :1]
    confidence_B = batch.logits_BC.double().softmax(dim=1).gather(1, best_B1).squeeze(1)
    correct_B = (best_B1.squeeze(1) == batch.labels_B).double()
    bin_B = (confidence_B * BINS).ceil().long().clamp(1, BINS) - 1
    total_3M.index_add_(1, bin_B, torch.stack([torch.ones_like(confidence_B), confidence_B, correct_B]))


def _calibration_error(total_3M: Tensor, images: float) -> float:
    _, confidence_M, correct_M = total_3M.unbind()
    return 100 * (confidence_M - correct_M).abs().sum().item() / images


METRICS = {
    "top1": Metric(lambda total, batch: total.add_((batch.best_BK[:, 0] == batch.labels_B).sum()), _percent),
    "top5": Metric(lambda total, batch: total.add_((batch.best_BK == batch.labels_B[:, None]).sum()), _percent),
    "nll": Metric(
        lambda total, batch: total.add_(F.cross_entropy(batch.logits_BC.double(), batch.labels_B, reduction="sum")),
        _mean,
    ),
    "ece": Metric(_add_to_bins, _calibration_error, shape=(3, BINS)),
    "agreement": Metric(_add_agreements, _percent, needs_teacher=True),
}


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

    ``predict`` and ``teacher_predict`` map uint8 images (B, 3, H, W) on ``device`` to logits (B, C). ``loader`` has
    this process's share of the images; ``teacher_loader`` has the same in the same batches, prepared for the teacher,
    which by default sees what the network sees.

    Returns:
        ``images``: how many. ``top1``, ``top5``: images whose label is among the 1 and the min(5, C) highest scores,
        in percent. ``nll``: mean cross-entropy in nats. ``ece``: expected calibration error (Guo et al. 2017, On
        Calibration of Modern Neural Networks, equation 3) over 15 bins of equal width, in percent. ``agreement``, with
        a teacher: images on which both predict the same class, in percent.
    """
    metrics = {name: metric for name, metric in METRICS.items() if teacher_predict or not metric.needs_teacher}
    sums = {name: torch.zeros(metric.shape, dtype=torch.float64, device=device) for name, metric in metrics.items()}
    images = torch.zeros((), dtype=torch.float64, device=device)
    for batch, teacher_batch in _pairs(loader, teacher_loader):
        logits_BC = predict(_on(batch.images, device)).float()
        teacher_logits_BC = None
        if teacher_predict is not None:
            teacher_logits_BC = teacher_predict(_on(teacher_batch.images, device)).float()
        best_BK = logits_BC.topk(min(TOP, num_classes), dim=1).indices
        predictions = Predictions(logits_BC, _on(batch.labels, device), best_BK, teacher_logits_BC)
        images += len(best_BK)
        for name, metric in metrics.items():
            metric.add(sums[name], predictions)
    total, *totals = _over_processes([images, *sums.values()])
    count: float = total.item()
    assert count > 0, "nothing to evaluate"
    found = {name: metric.result(sums, count) for (name, metric), sums in zip(metrics.items(), totals, strict=True)}
    return {"images": count, **found}


def _over_processes(sums: list[Tensor]) -> list[Tensor]:
    """Add each of some float64 sums over all processes, at once; they come back on the CPU."""
    flat = torch.cat([part.flatten() for part in sums])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flat)
    parts = torch.split(flat.cpu(), [part.numel() for part in sums])
    return [part.view(like.shape) for part, like in zip(parts, sums, strict=True)]


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
