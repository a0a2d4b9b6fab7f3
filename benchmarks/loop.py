"""What the training loop adds to a step: ours beside the thirty lines that people write, in one run.

    python benchmarks/loop.py [--only tiny|resnet20] [--rounds 7] [--threads 1] [--clock]

Both take the same steps on the same images in memory, in float32 with plain SGD: a network whose step takes about 4 ms,
where every line of Python shows, and ResNet-20 at batch 128. Ours is the whole loop of an epoch, with sums, alarms,
looks for a signal and the metric logger. Every round goes through all ways in turn; the median of the ratios counts.
Times on CPUs are of the processor, which other work on the machine disturbs least; by the clock with ``--clock``.
"""

import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import rows
import torch
import workplace
from rows import Row, beside
from torch.nn import functional as F
from workplace import DECAY, DEVICE, LR, MOMENTUM, TEMPERATURE, Case

from distillery.process import keep_memory
from distillery.training import loop

# Network, its arguments, side of its images, batch, steps of a round.
CASES: dict[str, tuple[str, dict[str, int], int, int, int]] = {
    "tiny": ("cifar_resnet8", {"width": 4}, 8, 16, 150),
    "resnet20": ("cifar_resnet20", {}, 32, 128, 2),
}
GOAL = 0.97
Way = Callable[[], object]


def ours(case: Case, run: str, steps: int) -> Way:
    """The engine's epoch, on batches that are there."""
    training, item = case.training(run), case.batch_of()
    deterministic, batches = torch.are_deterministic_algorithms_enabled(), training.batches
    replaced: Any = batches
    replaced.steps, replaced.step_images, replaced.start = steps, lambda step: case.batch, lambda epoch, step: None
    training.train_loader = repeat(item)
    training.alarms.steps = steps  # else each step would be its epoch's last, and be looked at

    def epoch() -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        # Not the first epoch, in which a run once says what its weights are.
        training.train_state.epoch, training.train_state.step, training.train_state.sums = 1, 0, []
        loop._train_epoch(training, time.monotonic())

    return epoch


def plain(case: Case, taught: bool, steps: int) -> Way:
    """The loop that people write."""
    student, teacher = case.network(case.student).to(DEVICE).train(), case.taught_by().to(DEVICE)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)

    def epoch() -> None:
        torch.use_deterministic_algorithms(False)
        for _ in range(steps):
            images = case.images.float().div_(255).sub_(case.mean).div_(case.std)
            logits_BC = student(images)
            loss = F.cross_entropy(logits_BC, case.labels)
            if taught:
                with torch.no_grad():
                    answers_BC = teacher(images)
                soft = [F.log_softmax(each / TEMPERATURE, 1) for each in (logits_BC, answers_BC)]
                loss = 0.1 * loss + 0.9 * TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def measure(name: str, folder: Path, rounds: int, clock: Callable[[], float]) -> list[Row]:
    """The rows of a network: alone and taught, deterministic or not."""
    model, arguments, size, batch, steps = CASES[name]
    case = Case(folder, model, model, size, batch, arguments=arguments, precision="32-true")
    found = []
    for kind, run in (("alone", "ce"), ("taught", "live")):
        lines, other, usual = "thirty lines", "not deterministic", "deterministic"
        ways = {
            lines: plain(case, run == "live", steps),
            other: ours(case, run, steps),
            usual: ours(case, f"{run}-deterministic", steps),
        }
        taken = rows.in_turns(ways, rounds, warm=1, clock=clock)
        title = f"the loop, {model} at batch {batch}, {kind}"
        found += [beside("step", f"{title}, {way}", taken, way, lines, GOAL, per=steps) for way in (other, usual)]
    return found


def main() -> None:
    """Print the table."""
    parser = rows.parser(__doc__, rounds=7)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--clock", action="store_true", help="time by the clock")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()  # as `distillery train` does; the thirty lines have it, too
    clock = time.perf_counter if options.clock else workplace.clock
    for name in CASES:
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                rows.write(measure(name, Path(folder), options.rounds, clock), options.rows)


if __name__ == "__main__":
    main()
