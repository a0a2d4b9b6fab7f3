"""A distillation step on this machine: ours, live and from a bank, beside a plain torch loop and timm's task.

    python benchmarks/step.py [--only loop,kd,vit,large,choices] [--rounds 5] [--steps 1] [--batch 4] [--size 224]

All ways see the same uint8 images, which lie on the device, and normalise them in the step. On a GPU all compute in
bf16, and rivals have a fused optimizer, too; on a CPU float32 with one thread, timed by the processor. Ours is the
loop's own step on a training built as ``distillery train`` builds it, with the machine's default choices unless the way
names others; a bank's rows are read from the disk. Every round takes some steps of each way in turn; the median of the
rounds' ratios counts, and above 1 the way is faster than the column's. A table follows each case.
"""

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import rows
import torch
import workplace
from rows import Row, beside
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from workplace import CLASSES, DECAY, DEVICE, LR, MOMENTUM, TEMPERATURE, Case, clock, engine_step

from distillery.errors import UserError
from distillery.process import keep_memory
from distillery.training.loop import _train_epoch

# The best flags that rivals know, and the same as choices of the machine.
FLAGS, SPEED, FUSED = (
    ("channels_last, fused", "channels_last=on,fused=on", {"fused": True})
    if DEVICE.type == "cuda"
    else ("channels_last", "channels_last=on", {})
)
R18, R50, R152 = (f"torchvision:resnet{depth}" for depth in (18, 50, 152))

Step = Callable[[], object]
Build = Callable[[Case], Step]


def ours(case: Case, run: str, speed: str = "") -> Step:
    """The engine's step."""
    return engine_step(case.training(run, speed), case.batch_of())


def flags(fast: bool) -> tuple[torch.memory_format, dict[str, bool]]:
    """A rival's memory format, and options of its optimizer."""
    return (torch.channels_last, FUSED) if fast else (torch.contiguous_format, {})


def plain(case: Case, taught: bool, fast: bool = True) -> Step:
    """The loop that people write."""
    layout, options = flags(fast)
    student = case.network(case.student).to(DEVICE, memory_format=layout).train()
    teacher = case.taught_by().to(DEVICE, memory_format=layout) if taught else None
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **options)

    def step() -> None:
        images = case.shown(layout)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.half):
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(images).float()
            logits = student(images).float()
        loss = F.cross_entropy(logits, case.labels)
        if teacher is not None:
            soft = [F.log_softmax(scores / TEMPERATURE, dim=1) for scores in (logits, answers)]
            loss = 0.1 * loss + 0.9 * TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timm_task(case: Case, fast: bool = True) -> Step:
    """The step of timm's train.py with --kd-model-name; fast with --channels-last, --amp-dtype bfloat16, fused=True."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.task import LogitDistillationTask

    layout, options = flags(fast)

    def network(name: str) -> nn.Module:
        made = timm.create_model(name.partition(":")[2], num_classes=CLASSES)
        return made.to(DEVICE, memory_format=layout)

    assert case.teacher is not None
    criterion, student = nn.CrossEntropyLoss(), network(case.student)
    weights = {"distill_loss_weight": 0.9, "task_loss_weight": 0.1, "temperature": TEMPERATURE}
    task: nn.Module = LogitDistillationTask(
        student, network(case.teacher), criterion, device=DEVICE, verbose=False, **weights
    )
    optimizer = create_optimizer_v2(student, opt="sgd", lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **options)
    task.train()

    def step() -> None:
        images = case.shown(layout)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.half):
            loss = task(images, case.labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def take(name: str, step: Step, steps: int) -> float:
    """Seconds of some steps."""
    deterministic = "deterministic" in name
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    began = clock()
    for _ in range(steps):
        step()
    return clock() - began


def measure(title: str, case: Case, builders: dict[str, Build], steps: int, rounds: int) -> list[Row]:
    """Run all ways in turns, print their table, and return what is compared."""
    ways: dict[str, Step] = {}
    peaks: dict[str, float] = {}
    found: list[Row] = []
    for name, build in builders.items():
        try:
            step = build(case)
            take(name, step, 3 if DEVICE.type == "cuda" else 1)
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                resident = torch.cuda.memory_allocated()
                take(name, step, 1)
                peaks[name] = (torch.cuda.max_memory_allocated() - resident) / 2**30
        except (ImportError, TypeError, RuntimeError, UserError) as error:  # missing, or of another interface
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:150]}"
            found.append(Row("step", f"{title}, {name}", reason=reason))
            continue
        ways[name] = step
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            taken[name].append(take(name, step, steps) / steps)
    best = {kind: _fastest(taken, kind) for kind in ("plain loop", "timm", "no teacher")}
    lines = []
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        ratios = [rows.faster(taken, name, anchor) for anchor in best.values() if anchor]
        lines.append([name, 1e3 * median, case.batch / median, peaks.get(name), *ratios])
    headers = [
        title,
        "ms",
        "images/s",
        "GiB above the resident",
        *(f"x {anchor}" for anchor in best.values() if anchor),
    ]
    print(f"\n{tabulate(lines, headers, tablefmt='github', floatfmt=('', '.2f', '.0f', '.2f', '.3f', '.3f', '.3f'))}")
    return found + _compared(title, case, taken, best, peaks)


def _fastest(taken: rows.Taken, kind: str) -> str:
    named = [name for name in taken if name.startswith(kind)]
    return min(named, key=lambda name: statistics.median(taken[name]), default="")


def _compared(title: str, case: Case, taken: rows.Taken, best: dict[str, str], peaks: dict[str, float]) -> list[Row]:
    """What of a table of ways stands in the table of ratios."""
    timm, fast = best["timm"], f"ours, {FLAGS}"
    pairs = [
        ("step", "ours", "plain loop", 0.98),
        ("step", fast, f"plain loop, {FLAGS}", 0.98),
        ("step", "ours", timm, None),
        ("step", fast, timm, 1.0),
        ("step", f"{fast}, folded teacher", timm, None),
        ("bank", "ours, bank", timm, BANK_GOALS.get(title)),
        ("bank", "ours, bank", "ours, no teacher", 0.97),
        ("bank", "ours, bank", best["no teacher"], None),
        ("bank", "ours, bank of float16", "ours, no teacher", None),
        ("bank", "ours, bank of top 16", "ours, no teacher", None),
    ]
    made = [
        beside(
            part, f"{title}, {way.partition(', ')[2] or 'defaults'}", taken, way, rival, goal, "images/s", case.batch
        )
        for part, way, rival, goal in pairs
        if way in taken and rival in taken
    ]
    if fast in peaks and best["plain loop"] in peaks:
        own, theirs = peaks[fast], peaks[best["plain loop"]]
        made.append(Row("step", f"{title}, memory", own, best["plain loop"], theirs, "GiB", theirs / own))
    if fast in taken:
        own, product = operations(case) / statistics.median(taken[fast]), product_speed(case.half)
        made.append(
            Row("step", f"{title}, {FLAGS}: roofline", own / 1e9, "a product", product / 1e9, "GFLOP/s", own / product)
        )
    return made


def operations(case: Case) -> int:
    """Of a step. A backward pass has twice the forward one's; torch counts those of depthwise convolutions wrongly."""

    def forward(network: nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.to(DEVICE)(case.shown(torch.contiguous_format))
        return counter.get_total_flops()

    return 3 * forward(case.network(case.student)) + (forward(case.taught_by()) if case.teacher else 0)


def product_speed(half: bool) -> float:
    """Operations a second of a large matrix product."""
    side = 8192 if DEVICE.type == "cuda" else 1024
    factor = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16 if half else torch.float32)
    taken = rows.in_turns({"": lambda: factor @ factor}, 7, 2, clock)
    return 2 * side**3 / statistics.median(taken[""])


def same_loss(title: str, case: Case) -> Row:
    """The loss of the first step from a bank of float32 rows, beside that with the live teacher: the same bits."""
    losses = []
    for run in ("bank-deterministic", "live-deterministic"):
        training = case.training(run, SPEED)  # a bank's teacher rounds as it does live
        with workplace.quiet():
            _train_epoch(training, time.monotonic(), 1)
        (sums,) = training.train_state.sums
        losses.append(sums["loss"] / sums["images"])
    bank, live = losses
    return Row(
        "bank", f"{title}, the first loss, bit for bit", bank, "live teacher", live, "", float(bank == live), 1.0
    )


# Live, from a bank, and without a teacher; beside the rivals.
TAUGHT: dict[str, Build] = {
    "ours": partial(ours, run="live"),
    f"ours, {FLAGS}": partial(ours, run="live", speed=SPEED),
    f"ours, {FLAGS}, folded teacher": partial(ours, run="live", speed=f"{SPEED},teacher=folded"),
    "ours, bank": partial(ours, run="bank", speed=SPEED),
    "ours, no teacher": partial(ours, run="ce", speed=SPEED),
    "plain loop": partial(plain, taught=True, fast=False),
    f"plain loop, {FLAGS}": partial(plain, taught=True),
    "timm": partial(timm_task, fast=False),
    f"timm, {FLAGS}": timm_task,
    f"no teacher, plain loop, {FLAGS}": partial(plain, taught=False),
}
ROWS: dict[str, Build] = {
    "ours, bank of float16": partial(ours, run="bank-float16", speed=SPEED),
    "ours, bank of top 16": partial(ours, run="bank-top16", speed=SPEED),
}
# What goals are about; the rest takes too long on CPUs.
FEW = {
    name: TAUGHT[name]
    for name in TAUGHT
    if not name.endswith(("ours", "folded teacher", "plain loop")) and "no teacher, " not in name
}
ALONE: dict[str, Build] = {
    "ours": partial(ours, run="ce"),
    f"ours, {FLAGS}": partial(ours, run="ce", speed=SPEED),
    "ours, deterministic": partial(ours, run="ce-deterministic"),
    "plain loop": partial(plain, taught=False, fast=False),
    f"plain loop, {FLAGS}": partial(plain, taught=False),
}
# One choice changed at a time, then all on.
CHOICES: dict[str, Build] = {
    "ours": partial(ours, run="live"),
    **{
        f"ours, {speed}": partial(ours, run="live", speed=speed)
        for speed in (
            "channels_last=on",
            "fused=on",
            "teacher=half",
            "teacher=folded",
            f"{SPEED},teacher=folded",
            f"{SPEED},teacher=folded,compile=teacher",
            f"{SPEED},teacher=folded,compile=both",
        )
    },
    f"plain loop, {FLAGS}": partial(plain, taught=True),
}
# How many times faster than timm's live teacher a bank is meant to be.
BANK_GOALS = {"R50 -> R18": 1.6, "R152 -> EfficientNet-B0": 2.2}


def main() -> None:
    """Print a table a case."""
    cuda = DEVICE.type == "cuda"
    parser = rows.parser(__doc__, rounds=5)
    usual = "loop,kd,vit,large" if cuda else "kd,large"
    parser.add_argument("--only", default=usual, help="of loop, kd, vit, large, choices, by commas [%(default)s]")
    parser.add_argument(
        "--batch", type=int, default=256 if cuda else 4, help="[%(default)s]; half at 32 pixels on GPUs"
    )
    parser.add_argument(
        "--size", type=int, default=224, help="image size [%(default)s]; the loop and the ViT have their own"
    )
    parser.add_argument(
        "--steps", type=int, default=4 if cuda else 1, help="in a round [%(default)s]; of the loop ten times"
    )
    given = parser.parse_args()
    # Title, student, teacher, size, batch, ways, steps.
    full = given.size, given.batch
    small = given.batch // 2 if cuda else 128
    cases = {
        "loop": ("ResNet-20, 32 px", "cifar_resnet20", None, 32, small, ALONE, 10 * given.steps),
        "kd": ("R50 -> R18", R18, R50, *full, TAUGHT | ROWS, given.steps),
        "vit": ("ViT-B/16 -> R18", R18, "timm:vit_base_patch16_224", 224, given.batch, TAUGHT, given.steps),
        "large": ("R152 -> EfficientNet-B0", "timm:efficientnet_b0", R152, *full, TAUGHT if cuda else FEW, given.steps),
        "choices": ("R50 -> R18, choices", R18, R50, *full, CHOICES, given.steps),
    }
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(cases):
        parser.error(f"--only: no case {', '.join(sorted(unknown))}; valid: {', '.join(cases)}")
    if not cuda:
        torch.set_num_threads(1)
    keep_memory()  # as `distillery train` does; rivals have it, too
    print(f"{rows.machine()}, batch {given.batch}, {given.size} px", flush=True)
    began = time.perf_counter()
    for case in wanted:
        title, student, teacher, size, batch, builders, steps = cases[case]
        with tempfile.TemporaryDirectory() as folder:
            made = Case(Path(folder), student, teacher, size, batch)
            found = measure(title, made, builders, steps, given.rounds)
            if case == "kd":
                found.append(same_loss(title, made))
            rows.write(found, given.rows)
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - began:.0f} s so far", flush=True)


if __name__ == "__main__":
    main()
