"""How fast the objectives' heavy parts are, each beside a straightforward way to the same result, in one run.

    python benchmarks/objectives.py [--only NAME] [--seconds S]

Every round times all ways of a part one after the other, so that a busy machine slows them alike; the smallest time of
each counts, and results are compared before times are. Absolute times depend on the machine; the ratios hardly do.

B batch, C classes, D features, S student channels, T teacher channels, H W pixels, G group.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional as F

from distillery.data.orders import partner_order
from distillery.distill.losses.bake import ensemble_targets
from distillery.distill.losses.mgd import match_channels, matching_cost, reduce_channels

STUDENT, TEACHER, BATCH, SIZE = 1024, 2048, 8, 14


@dataclass(frozen=True)
class Part:
    """One thing to compute, two ways to it, and how many times faster ours is meant to be."""

    name: str
    target: float
    baseline_name: str
    baseline: Callable[[], Any]
    ours: Callable[[], Any]
    agree: Callable[[Any, Any], bool]
    share: float = 1.0  # of the work, what the baseline does before its time is scaled up


def flow_update() -> list[Part]:
    """Match student channels with twice or four times as many teacher channels, given their costs, of several kinds."""
    kinds: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "32 causes, as much noise": features,
        "independent": lambda: features(causes=0),
        "32 causes": lambda: features(noise=0.1),
        "4 causes": lambda: features(causes=4, noise=0.2),
        "8 causes, ReLU": lambda: tuple(part.relu() for part in features(causes=8, noise=0.3)),
        "untrained resnet18, resnet50": untrained_networks,
    }
    return [part for kind, made in kinds.items() for part in _flow_parts(kind, matching_cost(*made()) / BATCH)]


def _flow_parts(kind: str, mean_cost: Tensor) -> list[Part]:
    students, teachers = mean_cost.shape
    group = teachers // students
    repeated = np.tile((1e5 * mean_cost.numpy()).astype(np.int64), (group, 1))

    def by_scipy() -> int:
        rows, columns = linear_sum_assignment(repeated)
        return int(repeated[rows, columns].sum())

    def by_ortools() -> int:
        rows, columns = np.indices(repeated.shape, dtype=np.int32)
        solver = SimpleLinearSumAssignment()
        solver.add_arcs_with_cost(rows.ravel(), columns.ravel(), repeated.ravel())
        assert solver.solve() == solver.OPTIMAL
        return int(solver.optimal_cost())

    def same_optimum(theirs: int, ours: Tensor) -> bool:
        return theirs == np.take_along_axis(repeated[:students], ours.numpy(), axis=1).sum()

    target = 1.0 if kind.startswith("4 causes") else 2.0
    rivals = {"scipy": by_scipy, "OR-Tools, all arcs at once": by_ortools}
    return [
        Part(
            f"flow {tuple(mean_cost.shape)}, {kind}",
            target,
            name,
            rival,
            lambda: match_channels(mean_cost, "amp"),
            same_optimum,
        )
        for name, rival in rivals.items()
    ]


def untrained_networks() -> tuple[Tensor, Tensor]:
    """What two freshly initialised networks make of blurred noise in the end: (B, 512, 7, 7), (B, 2048, 7, 7)."""
    import timm

    torch.manual_seed(0)
    images = F.interpolate(torch.rand(BATCH, 3, 28, 28), size=224, mode="bicubic")
    with torch.no_grad():
        return tuple(timm.create_model(name).eval().forward_features(images) for name in ("resnet18", "resnet50"))


def cost_accumulation() -> Part:
    """Add one batch to the running costs."""
    student, teacher = features()
    totals = torch.zeros(2, STUDENT, TEACHER, dtype=torch.float64)

    def image_by_image() -> Tensor:
        unit_student = F.normalize(student.flatten(2), dim=2)
        unit_teacher = F.normalize(teacher.flatten(2), dim=2)
        costs = 2 - 2 * torch.bmm(unit_student, unit_teacher.transpose(1, 2))
        for cost in costs:
            totals[0].add_(cost)
        return totals[0]

    def one_product() -> Tensor:
        return totals[1].add_(matching_cost(student, teacher))

    return Part(
        f"cost of {BATCH} x {SIZE} x {SIZE} ({STUDENT}, {TEACHER})",
        2.5,
        "bmm per image",
        image_by_image,
        one_product,
        lambda theirs, ours: torch.allclose(theirs, ours, rtol=1e-5),
    )


def amp_reduction() -> Part:
    """Pool groups of teacher channels by their largest absolute value."""
    _, teacher = features()
    margin = -torch.rand(1, TEACHER, 1, 1, generator=torch.Generator().manual_seed(1))
    flow = torch.randperm(TEACHER, generator=torch.Generator().manual_seed(2)).reshape(STUDENT, -1)

    def stack_argmax_gather() -> tuple[Tensor, Tensor]:
        members = torch.stack([teacher[:, channels] for channels in flow.T], dim=1)
        winners = members.abs().argmax(dim=1, keepdim=True)
        return members.gather(1, winners).squeeze(1), margin[:, flow].mean(dim=2)

    return Part(
        f"AMP reduction of {BATCH} x {SIZE} x {SIZE} ({STUDENT}, {TEACHER})",
        5.0,
        "stack, argmax, gather",
        stack_argmax_gather,
        lambda: reduce_channels(teacher, margin, flow, "amp"),
        lambda theirs, ours: all(map(torch.equal, theirs, ours)),
    )


def bake_targets() -> Part:
    """Ensemble the predictions of a batch of 512 over 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    unit_free, logits = torch.randn(512, 2048, generator=generator), 3 * torch.randn(512, 1000, generator=generator)

    def inverse_and_product() -> Tensor:
        unit = F.normalize(unit_free, dim=1)
        similarity = unit @ unit.T - 1e9 * torch.eye(512)
        weights = similarity.softmax(dim=1)
        return 0.5 * torch.inverse(torch.eye(512) - 0.5 * weights) @ (logits / 4).softmax(dim=1)

    return Part(
        "BAKE targets (B 512, C 1000, D 2048)",
        1.0,
        "inverse, product",
        inverse_and_product,
        lambda: ensemble_targets(unit_free, logits, 0.5, 4.0),
        lambda theirs, ours: torch.allclose(theirs, ours, rtol=1e-4),
    )


def features(causes: int = 32, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Feature maps of both networks, (B, S, H, W) and (B, T, H, W), that share some of their causes as real ones do."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(BATCH, causes, SIZE * SIZE, generator=generator)

    def mix(channels: int) -> Tensor:
        shared = torch.randn(channels, causes, generator=generator) / max(causes, 1) ** 0.5 @ common
        own = torch.randn(BATCH, channels, SIZE * SIZE, generator=generator)
        return (shared + noise * own).reshape(BATCH, channels, SIZE, SIZE)

    return mix(STUDENT), mix(TEACHER)


def partner_sampling() -> Part:
    """BAKE's epoch of ImageNet: a partner of the same class for each of 1.28 million anchors."""
    labels = np.sort(np.random.default_rng(0).integers(0, 1000, 1_281_167))
    share = 0.01
    members = [np.flatnonzero(labels == label).tolist() for label in range(1000)]
    generator = np.random.default_rng(0)

    def anchor_by_anchor() -> list[int]:
        order = []
        for anchor in generator.permutation(len(labels))[: int(share * len(labels))]:
            others = [index for index in members[labels[anchor]] if index != anchor]
            order += [anchor, *generator.choice(others, 1, replace=len(others) < 1)]
        return order

    order = partner_order(labels, 0, 1)

    def same_class(theirs: list[int], ours: Any) -> bool:
        pairs = [np.asarray(found).reshape(-1, 2) for found in (theirs, ours)]
        return all(
            (labels[pair[:, 0]] == labels[pair[:, 1]]).all() and (pair[:, 0] != pair[:, 1]).all() for pair in pairs
        )

    return Part(
        "BAKE partners of 1,281,167 anchors",
        100.0,
        "anchor by anchor",
        anchor_by_anchor,
        lambda: order(0),
        same_class,
        share,
    )


PARTS: dict[str, Callable[[], list[Part]]] = {
    "flow": flow_update,
    "cost": lambda: [cost_accumulation()],
    "amp": lambda: [amp_reduction()],
    "bake": lambda: [bake_targets()],
    "partners": lambda: [partner_sampling()],
}


def measure(part: Part, seconds: float) -> list[Any]:
    """Run both ways in turns and return the table's row."""
    assert part.agree(part.baseline(), part.ours()), f"{part.name}: the two ways disagree"
    times: dict[str, list[float]] = {"baseline": [], "ours": []}
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times["ours"]) < 3:
        for way, function in (("baseline", part.baseline), ("ours", part.ours)):
            began = time.perf_counter()
            function()
            times[way].append(time.perf_counter() - began)
    baseline, ours = min(times["baseline"]) / part.share, min(times["ours"])
    ratio = baseline / ours
    verdict = "met" if ratio >= part.target else "MISSED"
    return [part.name, part.baseline_name, 1e3 * baseline, 1e3 * ours, ratio, part.target, verdict]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS, help="measure one part")
    parser.add_argument("--seconds", type=float, default=6, help="rounds go on for so long, and at least three (6)")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    made = (part for name, make in PARTS.items() if arguments.only in (None, name) for part in make())
    rows = [measure(part, arguments.seconds) for part in made]
    headers = ["part", "baseline", "baseline ms", "ours ms", "times faster", "target", ""]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", ".1f", ".1f", ".1f", ".1f")))


if __name__ == "__main__":
    main()
