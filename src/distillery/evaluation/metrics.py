"""Accuracy, calibration and agreement over a whole split, each image counted once.

All of it is sums over images, kept in float64 on the device (on the CPU for one without) and added over processes
once, at the end: nothing waits in between, and the order of images, batches and processes cannot matter. A metrics
library would do as well but takes longer to import than a small network takes to evaluate; the tests hold these numbers
against one.

An entry of ``METRICS`` is all that a metric is; with a column of its name it may stand in tables.

B batch, C classes, K the highest scores, M bins.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from distillery.accelerator import float64_device

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
    """What a network says of a batch, and what is right.

    ``best_BK`` are the classes of its highest scores, ``teacher_best_B`` those of its teacher's highest.
    """

    logits_BC: Tensor
    labels_B: Tensor
    best_BK: Tensor
    teacher_best_B: Tensor | None


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
    assert batch.teacher_best_B is not None
    total += (batch.best_BK[:, 0] == batch.teacher_best_B).sum()


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


class Tally:
    """The metrics of one network, as they are counted batch by batch; those that need a teacher only with one."""

    def __init__(self, num_classes: int, device: torch.device, with_teacher: bool) -> None:
        self.metrics = {name: metric for name, metric in METRICS.items() if with_teacher or not metric.needs_teacher}
        self.sums = {name: _zeros(metric.shape, device) for name, metric in self.metrics.items()}
        self.images = _zeros((), device)
        self.device = float64_device(device)
        self.best = min(TOP, num_classes)

    def add(self, logits_BC: Tensor, labels_B: Tensor, teacher_best_B: Tensor | None = None) -> Tensor:
        """Count a batch, and return the most probable class of each image (B,)."""
        asked = logits_BC.device
        logits_BC, labels_B = logits_BC.float().to(self.device), labels_B.to(self.device)
        teacher_best_B = None if teacher_best_B is None else teacher_best_B.to(self.device)
        best_BK = logits_BC.topk(self.best, dim=1).indices
        predictions = Predictions(logits_BC, labels_B, best_BK, teacher_best_B)
        self.images += len(best_BK)
        for name, metric in self.metrics.items():
            metric.add(self.sums[name], predictions)
        return best_BK[:, 0].to(asked)

    def result(self) -> dict[str, float]:
        """The metrics over the images of all processes; ``images`` says how many."""
        total, *totals = _over_processes([self.images, *self.sums.values()])
        count: float = total.item()
        assert count > 0, "nothing to evaluate"
        pairs = zip(self.metrics.items(), totals, strict=True)
        return {"images": count, **{name: metric.result(sums, count) for (name, metric), sums in pairs}}


@torch.no_grad()
def evaluate_model(
    predict: Predict,
    loader: Iterable[LabelledImages],
    num_classes: int,
    device: torch.device,
    teacher_predict: Predict | None = None,
) -> dict[str, float]:
    """Measure a network on every image of a loader; on those of all processes where there are several.

    ``predict`` and ``teacher_predict`` map uint8 images (B, 3, H, W) on ``device`` to logits (B, C). ``loader`` has
    this process's share of the images.

    Returns:
        ``images``: how many. ``top1``, ``top5``: images whose label is among the 1 and the min(5, C) highest scores,
        in percent. ``nll``: mean cross-entropy in nats. ``ece``: expected calibration error (Guo et al. 2017, On
        Calibration of Modern Neural Networks, equation 3) over 15 bins of equal width, in percent. ``agreement``, with
        a teacher: images on which both predict the same class, in percent.
    """
    tally = Tally(num_classes, device, teacher_predict is not None)
    for batch in loader:
        images = on(batch.images, device)
        logits_BC = predict(images)
        teacher_best_B = None if teacher_predict is None else teacher_predict(images).float().argmax(dim=1)
        tally.add(logits_BC, on(batch.labels, device), teacher_best_B)
    return tally.result()


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=float64_device(device))


def _over_processes(sums: list[Tensor]) -> list[Tensor]:
    """Add each of some float64 sums over all processes, at once; they come back on the CPU."""
    flat = torch.cat([part.flatten() for part in sums])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flat)
    parts = torch.split(flat.cpu(), [part.numel() for part in sums])
    return [part.view(like.shape) for part, like in zip(parts, sums, strict=True)]


def on(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; copied without waiting where it lies in pinned memory."""
    return tensor.to(device, non_blocking=True)
