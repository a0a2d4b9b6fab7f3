"""A training step on this machine's GPU: ours beside a plain torch loop and timm's distillation task.

    python benchmarks/gpu_step.py [--only loop,kd,vit,large,choices] [--rounds 5] [--steps 4] [--batch 256] [--size 224]

All ways see the same uint8 images, which lie on the device, in bf16, and normalise them in the step; rivals have the
best flags that they know (channels_last, a fused optimizer). Ours is the loop's own step function on a training built
as ``distillery train`` builds it, with the machine's default choices unless the way names others; a bank's rows are
read from the disk. Every round takes some steps of each way in turn; the median of the rounds' ratios counts, and above
1 the way is faster than the column's. A table follows each case. Without a GPU it runs on the CPU, to be tried with
small numbers.
"""

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from distillery.cluster.signals import StopSignal
from distillery.data.loader import Batch
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import Sample
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.models import create_model
from distillery.training.answers import record_answers
from distillery.training.build import build_training
from distillery.training.devices import settle, start_devices
from distillery.training.epoch_sums import EpochSums
from distillery.training.job import Job, Machine
from distillery.training.loop import Training, _train_step
from distillery.training.run import make_run
from distillery.training.speed import chosen_speed

CLASSES, TEMPERATURE, LR, MOMENTUM, DECAY = 10, 4.0, 1e-3, 0.9, 1e-4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FORMAT = torch.channels_last if DEVICE.type == "cuda" else torch.contiguous_format
FUSED = {"fused": True} if DEVICE.type == "cuda" else {}

RECIPE = """epochs: 1
batch: {batch}
crops: 1
optimizer: {{name: sgd, lr: {lr}, momentum: {momentum}, weight_decay: {decay}}}
schedule: {{name: constant}}
preprocess: {{size: {size}, normalize: imagenet}}
precision: bf16-mixed
deterministic: {deterministic}
"""
R18, R50, R152 = (f"torchvision:resnet{depth}" for depth in (18, 50, 152))

Step = Callable[[], object]
Build = Callable[["Case"], Step]


class Case:
    """A student, perhaps with a teacher, at an image size and a batch, in a workplace of its own."""

    def __init__(self, folder: Path, student: str, teacher: str | None, size: int, batch: int) -> None:
        self.folder, self.student, self.teacher, self.batch = folder, student, teacher, batch
        (folder / "config/recipes").mkdir(parents=True)
        for kind in ("fast", "deterministic"):
            text = RECIPE.format(
                batch=batch, size=size, lr=LR, momentum=MOMENTUM, decay=DECAY, deterministic=kind == "deterministic"
            )
            (folder / f"config/recipes/{kind}.yaml").write_text(text)
        torch.manual_seed(0)
        lines = [
            f"{name}: {{model: '{student}', recipe: {kind}, objective: {{ce: {{}}}}}}"
            for name, kind in (("ce", "fast"), ("ce-deterministic", "deterministic"))
        ]
        if teacher is not None:
            torch.save(create_model(teacher, CLASSES).state_dict(), folder / "teacher.pth")
            objective = f"{{ce: {{weight: 0.1}}, kd: {{weight: 0.9, temperature: {TEMPERATURE}}}}}"
            lines += [
                f"teacher: {{model: '{teacher}', weights: '{folder / 'teacher.pth'}', "
                f"preprocess: {{size: {size}, normalize: imagenet}}}}"
            ]
            lines += [
                f"{name}: {{model: '{student}', recipe: fast, objective: {objective}, teacher: {taught}}}"
                for name, taught in (("live", "teacher"), ("bank", "{run: teacher, answers: bank}"))
            ]
        runs = "".join(f"    {line}\n" for line in lines)
        (folder / "config/bench.yaml").write_text(
            f"bench:\n  dataset: bench\n  runs:\n{runs}  tables:\n    t: {{title: t, rows: [ce], columns: [top1]}}\n"
        )
        (folder / "config/datasets.yaml").write_text(f"bench: {{path: {folder / 'raw'}}}\n")
        _write_images(folder / "raw", batch)
        prepare_dataset("bench", Dataset(path=str(folder / "raw")), folder / "results/datasets/bench", 1)
        if teacher is not None:
            make_run(self.job("teacher"))
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator).to(DEVICE)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(DEVICE)
        self.mean, self.std = (torch.tensor(values, device=DEVICE).view(3, 1, 1) for values in (MEAN, STD))

    def job(self, run: str, speed: str = "") -> Job:
        """A run of the workplace, with the machine's choices."""
        machine = Machine(workers=0, speed=chosen_speed(speed))
        return Job(load_experiment(self.folder / "config/bench.yaml"), run, 0, self.folder / "results", machine)

    def shown(self) -> torch.Tensor:
        """The images as a loop normalises them."""
        return self.images.float().div_(255).sub_(self.mean).div_(self.std).contiguous(memory_format=FORMAT)


def _write_images(raw: Path, train: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, images in (("train", train), ("val", CLASSES)):
        for number in range(max(images, CLASSES)):
            path = raw / split / f"class{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def ours(case: Case, run: str, speed: str = "") -> Step:
    """The engine's step."""
    if run == "bank":
        record_answers(case.job(run, speed), StopSignal())
    job, recipe = settle(case.job(run, speed))
    fabric = start_devices(recipe, None, speed=job.machine.speed)
    training = build_training(job, recipe, fabric, StopSignal(), time.monotonic())
    training.metric_logger.begin(training.name, 1, training.batches.steps, training.train_state)
    images = Batch(case.images, case.labels, torch.arange(case.batch, device=DEVICE))
    stored: Iterator[Any] = repeat(None)
    if training.bank is not None:
        stored = training.bank.answers(_endless(training), pin_memory=DEVICE.type == "cuda")
    batches, sums = zip(repeat(images), stored, strict=False), EpochSums({})
    training.learner.train()

    def step() -> None:
        _train_step(training, 0, None, batches, sums)
        training.metric_logger.step(case.batch, sums.means)

    return step


def _endless(training: Training) -> Iterator[list[Sample]]:
    for _ in count():
        training.batches.start(0)
        yield from training.batches


def plain(case: Case, taught: bool) -> Step:
    """The loop that people write."""
    student = create_model(case.student, CLASSES).to(DEVICE, memory_format=FORMAT).train()
    teacher = None
    if taught:
        assert case.teacher is not None
        teacher = create_model(case.teacher, CLASSES).to(DEVICE, memory_format=FORMAT)
        teacher.load_state_dict(torch.load(case.folder / "teacher.pth"))
        teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **FUSED)

    def step() -> None:
        images = case.shown()
        with torch.autocast(DEVICE.type, torch.bfloat16):
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


def timm_task(case: Case) -> Step:
    """The step of timm's train.py with --kd-model-name, --channels-last, --amp --amp-dtype bfloat16, fused=True."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.task import LogitDistillationTask

    def network(name: str) -> nn.Module:
        made = timm.create_model(name.partition(":")[2], num_classes=CLASSES)
        return made.to(DEVICE, memory_format=FORMAT)

    assert case.teacher is not None
    criterion, student = nn.CrossEntropyLoss(), network(case.student)
    weights = {"distill_loss_weight": 0.9, "task_loss_weight": 0.1, "temperature": TEMPERATURE}
    task: nn.Module = LogitDistillationTask(
        student, network(case.teacher), criterion, device=DEVICE, verbose=False, **weights
    )
    optimizer = create_optimizer_v2(student, opt="sgd", lr=LR, momentum=MOMENTUM, weight_decay=DECAY, **FUSED)
    task.train()

    def step() -> None:
        images = case.shown()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = task(images, case.labels)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def take(name: str, step: Step, steps: int) -> float:
    """Seconds a step."""
    deterministic = "deterministic" in name
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not deterministic
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - began) / steps


def measure(title: str, case: Case, builders: dict[str, Build], steps: int, rounds: int) -> None:
    """Run all ways in turns and print their table."""
    ways: dict[str, Step] = {}
    peaks: dict[str, float] = {}
    for name, build in builders.items():
        try:
            step = build(case)
            take(name, step, 3)
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                resident = torch.cuda.memory_allocated()
                take(name, step, 1)
                peaks[name] = (torch.cuda.max_memory_allocated() - resident) / 2**30
        except (ImportError, TypeError, RuntimeError, UserError) as error:  # missing, or of another interface
            reason = (str(error).splitlines() or [""])[0][:200]
            print(f"{title}: {name} left out: {type(error).__name__}: {reason}", flush=True)
            continue
        ways[name] = step
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, step in ways.items():
            taken[name].append(take(name, step, steps))
    anchors = [name for name in ("plain loop", "timm", "plain loop, no teacher") if name in ways]
    rows = []
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        ratios = [
            statistics.median(theirs / own for theirs, own in zip(taken[anchor], seconds, strict=True))
            for anchor in anchors
        ]
        rows.append([name, 1e3 * median, case.batch / median, peaks.get(name), *ratios])
    headers = [title, "ms", "images/s", "GiB above the resident", *(f"x {anchor}" for anchor in anchors)]
    print(f"\n{tabulate(rows, headers, tablefmt='github', floatfmt=('', '.2f', '.0f', '.2f', '.3f', '.3f', '.3f'))}")


# Live, from a bank, and without a teacher; beside the rivals.
TAUGHT: dict[str, Build] = {
    "ours": partial(ours, run="live"),
    "ours, folded teacher": partial(ours, run="live", speed="teacher=folded"),
    "ours, bank": partial(ours, run="bank"),
    "ours, no teacher": partial(ours, run="ce"),
    "plain loop": partial(plain, taught=True),
    "timm": timm_task,
    "plain loop, no teacher": partial(plain, taught=False),
}
ALONE: dict[str, Build] = {
    "ours": partial(ours, run="ce"),
    "ours, deterministic": partial(ours, run="ce-deterministic"),
    "plain loop": partial(plain, taught=False),
}
# One choice changed at a time, then all on.
CHOICES: dict[str, Build] = {
    "ours": partial(ours, run="live"),
    **{
        f"ours, {speed}": partial(ours, run="live", speed=speed)
        for speed in (
            "channels_last=off",
            "fused=off",
            "teacher=plain",
            "teacher=folded",
            "teacher=folded,compile=teacher",
            "teacher=folded,compile=both",
        )
    },
    "plain loop": partial(plain, taught=True),
}


def main() -> None:
    """Print a table a case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="loop,kd,vit,large,choices", help="cases, by commas (%(default)s)")
    parser.add_argument("--batch", type=int, default=256, help="at full size (256); half at 32 pixels")
    parser.add_argument("--size", type=int, default=224, help="image size (224); the loop and the ViT have their own")
    parser.add_argument("--steps", type=int, default=4, help="of each way in a round (4); of the loop ten times")
    parser.add_argument("--rounds", type=int, default=5, help="that count (5)")
    given = parser.parse_args()
    # Title, student, teacher, size, batch, ways, steps.
    full = given.size, given.batch
    cases = {
        "loop": ("ResNet-20, 32 px", "cifar_resnet20", None, 32, given.batch // 2, ALONE, 10 * given.steps),
        "kd": ("R50 -> R18", R18, R50, *full, TAUGHT, given.steps),
        "vit": ("ViT-B/16 -> R18", R18, "timm:vit_base_patch16_224", 224, given.batch, TAUGHT, given.steps),
        "large": ("R152 -> EfficientNet-B0", "timm:efficientnet_b0", R152, *full, TAUGHT, given.steps),
        "choices": ("R50 -> R18, choices", R18, R50, *full, CHOICES, given.steps),
    }
    wanted = given.only.split(",")
    if unknown := set(wanted) - set(cases):
        parser.error(f"--only: no case {', '.join(sorted(unknown))}; valid: {', '.join(cases)}")
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bf16-mixed, batch {given.batch}, {given.size} px", flush=True)
    began = time.perf_counter()
    for case in wanted:
        title, student, teacher, size, batch, builders, steps = cases[case]
        with tempfile.TemporaryDirectory() as folder:
            measure(title, Case(Path(folder), student, teacher, size, batch), builders, steps, given.rounds)
        gc.collect()
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
        print(f"{time.perf_counter() - began:.0f} s so far", flush=True)


if __name__ == "__main__":
    main()
