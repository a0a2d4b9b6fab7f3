"""How fast the objectives' heavy parts are, each beside the fastest other ways to the same result, in one run.

    python benchmarks/objectives.py [--only flow cost amp bake partners survey] [--seconds 2]

Every round goes through all ways of a part in turn; the median of the rounds' ratios to the best rival counts, of the
processor's time with one thread. Results are compared before times are.

B batch, C classes, D features, S student channels, T teacher channels, H W pixels, G group.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rows
import torch
from ortools.graph.python.linear_sum_assignment import SimpleLinearSumAssignment
from ortools.graph.python.min_cost_flow import SimpleMinCostFlow
from rows import Row, beside, within
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from workplace import CLASSES, Case, clock, engine_step, quiet

from distillery.data.orders import partner_order
from distillery.distill.losses import mgd
from distillery.distill.losses.bake import ensemble_targets
from distillery.distill.losses.mgd import match_channels, matching_cost, reduce_channels

STUDENT, TEACHER, BATCH, SIZE = 1024, 2048, 8, 14
# Images of CUB-200-2011.
CUB_TRAIN, CUB_VAL = 5994, 5794


@dataclass(frozen=True)
class Part:
    """One thing to compute, the rivals' ways and ours, and how many times faster ours is meant to be."""

    name: str
    goal: float
    rivals: dict[str, Callable[[], Any]]
    ours: Callable[[], Any]
    agree: Callable[[Any, Any], bool]


def flow_updates() -> Iterator[Part]:
    """Match channels of both networks, given their costs, of several kinds and widths."""
    kinds: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
        "32 causes, as much noise": features,
        "32 causes": lambda *widths: features(*widths, noise=0.1),
        "independent": lambda *widths: features(*widths, causes=0),
        "8 causes, ReLU": lambda *widths: tuple(part.relu() for part in features(*widths, causes=8, noise=0.3)),
        "4 causes": lambda *widths: features(*widths, causes=4, noise=0.2),
        "2 causes": lambda *widths: features(*widths, causes=2, noise=0.1),
        "a third of zeros": lambda *widths: tuple(without_a_third(part) for part in features(*widths)),
    }
    usual = list(kinds)[:4]
    for kind, made in kinds.items():
        # So few causes, or so many zeros, are not usual: there it should only not be slower.
        yield flow_update(kind, matching_cost(*made(STUDENT, TEACHER)) / BATCH, 2.0 if kind in usual else 1.0)
    for widths in ((320, 2048), (96, 1024), (256, 512), (512, 512), (1024, 1024), (1024, 512)):
        for kind in ("32 causes, as much noise", "independent", "2 causes"):
            yield flow_update(kind, matching_cost(*kinds[kind](*widths)) / BATCH, 1.0)
    for trained in (False, True):
        kind, mean_cost = real_networks(trained)
        yield flow_update(kind, mean_cost, 2.0)
        yield flow_update(kind, mean_cost[:, :512].contiguous(), 1.0)


def without_a_third(maps: Tensor) -> Tensor:
    """Feature maps of which every third channel is zero."""
    maps[:, ::3] = 0
    return maps


def flow_update(kind: str, mean_cost: Tensor, goal: float) -> Part:
    """The matching of one kind of costs."""
    students, teachers = mean_cost.shape
    group = max(teachers // students, 1)
    cost = (1e5 * mean_cost.numpy()).astype(np.int64)
    # Each student channel as often as it is matched; where there are more of them, each teacher channel.
    repeated = np.tile(cost, (group, max(students // teachers, 1)))

    def by_scipy() -> int:
        places = linear_sum_assignment(repeated)
        return int(repeated[places].sum())

    def by_ortools() -> int:
        places = np.indices(repeated.shape, dtype=np.int32)
        solver = SimpleLinearSumAssignment()
        solver.add_arcs_with_cost(*(each.ravel() for each in places), repeated.ravel())
        assert solver.solve() == solver.OPTIMAL
        return int(solver.optimal_cost())

    def by_ortools_flow() -> int:
        tails, heads = np.indices(cost.shape, dtype=np.int32).reshape(2, -1)
        sink, some = students + teachers, np.ones(teachers, np.int64)
        solver = SimpleMinCostFlow()
        solver.add_arcs_with_capacity_and_unit_cost(tails, heads + students, np.ones(cost.size, np.int64), cost.ravel())
        ends = np.arange(students, sink, dtype=np.int32), np.full(teachers, sink, np.int32)
        solver.add_arcs_with_capacity_and_unit_cost(*ends, some, 0 * some)
        supplies = np.concatenate([np.full(students, group), 0 * some, [-students * group]])
        solver.set_nodes_supplies(np.arange(sink + 1, dtype=np.int32), supplies)
        assert solver.solve() == solver.OPTIMAL
        return int(solver.optimal_cost())

    return Part(
        f"flow ({students}, {teachers}), {kind}",
        goal,
        {
            "scipy": by_scipy,
            "OR-Tools, all arcs": by_ortools if len(repeated) == repeated.shape[1] else by_ortools_flow,
        },
        lambda: match_channels(mean_cost, "amp"),
        lambda theirs, ours: theirs == np.take_along_axis(cost, ours.numpy(), axis=1).sum(),
    )


def features(
    students: int = STUDENT, teachers: int = TEACHER, causes: int = 32, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Feature maps of both networks, (B, S, H, W) and (B, T, H, W), that share some of their causes as real ones do."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(BATCH, causes, SIZE * SIZE, generator=generator)

    def mix(channels: int) -> Tensor:
        shared = torch.randn(channels, causes, generator=generator) / max(causes, 1) ** 0.5 @ common
        own = torch.randn(BATCH, channels, SIZE * SIZE, generator=generator)
        return (shared + noise * own).reshape(BATCH, channels, SIZE, SIZE)

    return mix(students), mix(teachers)


def real_networks(trained: bool) -> tuple[str, Tensor]:
    """The last stages of ResNet-18 and ResNet-50, as they begin or after a few steps on the digits, and their costs."""
    import timm
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().div(16)[:, None].expand(-1, 3, -1, -1)
    labels, networks, scores = torch.from_numpy(digits.target), [], []
    for name in ("resnet18", "resnet50"):
        network = timm.create_model(name, num_classes=10)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        for ids in torch.randperm(len(images)).split(32)[: 30 if trained else 0]:
            logits = network(F.interpolate(images[ids], size=64, mode="bicubic"))
            F.cross_entropy(logits, labels[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
            scores.append((logits.argmax(1) == labels[ids]).float().mean().item())
        networks.append(network.eval())
    total, shown = torch.zeros(512, 2048, dtype=torch.float64), images[:32]
    with torch.no_grad():
        for part in shown.split(BATCH):
            part = F.interpolate(part, size=224, mode="bicubic")
            total += matching_cost(*(network.forward_features(part) for network in networks))
    scored = f", top-1 {100 * sum(scores[-5:]) / 5:.0f} %" if trained else ""
    return f"R18, R50 {'trained' if trained else 'untrained'}{scored}", total / len(shown)


def cost_accumulation() -> Part:
    """Add one batch to the running costs."""
    student, teacher = features()
    totals = torch.zeros(2, STUDENT, TEACHER, dtype=torch.float64)

    def image_by_image() -> Tensor:
        units = [F.normalize(maps.flatten(2), dim=2) for maps in (student, teacher)]
        for cost in 2 - 2 * torch.bmm(units[0], units[1].transpose(1, 2)):
            totals[0].add_(cost)
        return totals[0]

    return Part(
        f"cost of {BATCH} x {SIZE} x {SIZE} ({STUDENT}, {TEACHER})",
        2.5,
        {"bmm per image": image_by_image},
        lambda: totals[1].add_(matching_cost(student, teacher)),
        lambda theirs, ours: torch.allclose(theirs, ours, rtol=1e-5),
    )


def amp_reduction() -> Part:
    """Pool groups of teacher channels by their largest absolute value."""
    _, teacher = features()
    margin = -torch.rand(1, TEACHER, 1, 1, generator=torch.Generator().manual_seed(1))
    flow = torch.randperm(TEACHER, generator=torch.Generator().manual_seed(2)).reshape(STUDENT, -1)

    def max_and_min() -> tuple[Tensor, Tensor]:
        first, second = (teacher.index_select(1, members) for members in flow.T)
        high, low = torch.maximum(first, second), torch.minimum(first, second)
        return torch.where(high >= -low, high, low), margin[:, flow].mean(dim=2)

    return Part(
        f"AMP reduction of {BATCH} x {SIZE} x {SIZE} ({STUDENT}, {TEACHER})",
        1.0,
        {"max and min": max_and_min},
        lambda: reduce_channels(teacher, margin, flow, "amp"),
        lambda theirs, ours: all(map(torch.equal, theirs, ours)),
    )


def bake_targets() -> Part:
    """Ensemble the predictions of a batch of 512 over 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    unit_free, logits = torch.randn(512, 2048, generator=generator), 3 * torch.randn(512, 1000, generator=generator)

    def lu_solve() -> Tensor:
        unit = F.normalize(unit_free, dim=1)
        weights = (unit @ unit.T).fill_diagonal_(-math.inf).softmax(dim=1)
        return torch.linalg.solve(torch.eye(512) - 0.5 * weights, 0.5 * (logits / 4).softmax(dim=1))

    return Part(
        "BAKE targets (B 512, C 1000, D 2048)",
        1.0,
        {"torch.linalg.solve": lu_solve},
        lambda: ensemble_targets(unit_free, logits, 0.5, 4.0),
        lambda theirs, ours: torch.allclose(theirs, ours, rtol=1e-4),
    )


def partner_sampling() -> Part:
    """BAKE's epoch of ImageNet: a partner of the same class for each of 1.28 million anchors."""
    labels, generator = np.sort(np.random.default_rng(0).integers(0, 1000, 1_281_167)), np.random.default_rng(0)
    starts, sizes = np.searchsorted(labels, np.arange(1000)), np.bincount(labels)
    order = partner_order(labels, 0, 1)

    def three_lines() -> np.ndarray:
        """Draws that nobody can repeat, for labels that are sorted."""
        anchors = generator.permutation(len(labels))
        partners = starts[labels[anchors]] + generator.integers(0, sizes[labels[anchors]] - 1)
        return np.stack([anchors, partners + (partners >= anchors)], 1).reshape(-1)

    def same_class(*ways: np.ndarray) -> bool:
        pairs = [way.reshape(-1, 2) for way in ways]
        return all(
            (labels[pair[:, 0]] == labels[pair[:, 1]]).all() and (pair[:, 0] != pair[:, 1]).all() for pair in pairs
        )

    return Part("BAKE partners of 1,281,167", 1.0, {"numpy, 3 lines": three_lines}, lambda: order(0), same_class)


def measure(part: Part, seconds: float) -> Row:
    """All ways in turns, for about so many seconds and at least three rounds; ours beside the best rival."""
    ways = {**part.rivals, "ours": part.ours}
    began = time.process_time()
    results = {name: way() for name, way in ways.items()}
    rounds = min(max(3, int(seconds / (time.process_time() - began))), 30)
    for name in part.rivals:
        assert part.agree(results[name], results["ours"]), f"{part.name}: {name} and ours disagree"
    taken = rows.in_turns(ways, rounds, warm=0)
    best = min(part.rivals, key=lambda name: median(taken[name]))
    return beside("MGD" if part.name.startswith("flow") else "objectives", part.name, taken, "ours", best, part.goal)


def survey(folder: Path) -> Row:
    """What MGD's flow adds to an epoch of CUB, by a step, a validation and a survey of a few images."""
    term = "{ce: {}, mgd: {reducer: amp, update_every: 2, ignore: [0]}}"
    case = Case(folder, "mgd_mobilenet_v2", "torchvision:resnet50", 224, 4, {"mgd": term}, precision="32-true")
    training, matching, found = case.training("mgd"), [0.0], match_channels

    def timed(*given: Any) -> Tensor:
        began = clock()
        flow = found(*given)
        matching[0] += clock() - began
        return flow

    def take(action: Callable[[], object]) -> float:
        began = clock()
        with quiet():
            action()
        return clock() - began

    # The workplace has an image a class, to train and to validate.
    mgd.match_channels = timed
    surveyed = take(lambda: training.bare.objective.begin_epoch(0, training.calibration_batches(0))) - matching[0]
    mgd.match_channels = found
    validated = take(lambda: training.validate(training.bare.student))
    step = engine_step(training, case.batch_of())
    steps = [take(step) for _ in range(4)][1:]
    flow = (CUB_TRAIN * surveyed / CLASSES + matching[0]) / 2
    rest = CUB_TRAIN * median(steps) / case.batch + CUB_VAL * validated / CLASSES
    return within("MGD", "flow, on top of an epoch of CUB, R50 -> MobileNet-V2", 100 * flow / rest, 10.0, "%")


PARTS: dict[str, Callable[[], Iterator[Part]]] = {
    "flow": flow_updates,
    "cost": lambda: iter([cost_accumulation()]),
    "amp": lambda: iter([amp_reduction()]),
    "bake": lambda: iter([bake_targets()]),
    "partners": lambda: iter([partner_sampling()]),
}


def measured(names: list[str], seconds: float) -> Iterator[Row]:
    """The rows of some parts."""
    for name in names:
        if name == "survey":
            with tempfile.TemporaryDirectory() as folder:
                yield survey(Path(folder))
        else:
            yield from (measure(part, seconds) for part in PARTS[name]())


def main() -> None:
    """Print the table."""
    parser = rows.parser(__doc__, rounds=0)
    names = [*PARTS, "survey"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="[all]")
    parser.add_argument("--seconds", type=float, default=2, help="rounds go on for so long, and at least three [2]")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows.write(measured(given.only, given.seconds), given.rows)


if __name__ == "__main__":
    main()
