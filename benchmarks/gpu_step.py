"""A training step on this machine's GPU: ours beside a plain torch loop and timm's distillation task.

    python benchmarks/gpu_step.py [--batch 256] [--size 224] [--rounds 7]

All ways see the same uint8 images, which lie on the device, in the same precision and memory format, and normalise them
in the step. Ours is the loop's own step function on a training built as ``distillery train`` builds it. Every round
takes some steps of each way in turn; the median of the rounds' ratios counts. A ratio above 1 means ours is faster.
Without a GPU it runs on the CPU, to be tried with small numbers.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from distillery.cluster.signals import StopSignal
from distillery.data.loader import Batch
from distillery.data.prepare import prepare_dataset
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.models import create_model
from distillery.training.build import build_training
from distillery.training.devices import start_devices
from distillery.training.epoch_sums import EpochSums
from distillery.training.job import Job, Machine
from distillery.training.loop import _train_step
from distillery.training.run import make_run

CLASSES, TEMPERATURE, LR, MOMENTUM, DECAY = 10, 4.0, 1e-3, 0.9, 1e-4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

RECIPE = """epochs: 1
batch: {batch}
optimizer: {{name: sgd, lr: {lr}, momentum: {momentum}, weight_decay: {decay}}}
schedule: {{name: constant}}
preprocess: {{size: {size}, normalize: imagenet}}
precision: bf16-mixed
channels_last: true
deterministic: {deterministic}
"""

Step = Callable[[], object]
Way = tuple[Step, bool]  # with whether it runs deterministic kernels


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
        objective, lines = "{ce: {}}", []
        if teacher is not None:
            torch.save(create_model(teacher, CLASSES).state_dict(), folder / "teacher.pth")
            objective = f"{{ce: {{weight: 0.1}}, kd: {{weight: 0.9, temperature: {TEMPERATURE}}}}}, teacher: teacher"
            lines += [
                f"teacher: {{model: '{teacher}', weights: '{folder / 'teacher.pth'}', "
                f"preprocess: {{size: {size}, normalize: imagenet}}}}"
            ]
        lines += [
            f"{kind}: {{model: '{student}', recipe: {kind}, objective: {objective}}}"
            for kind in ("fast", "deterministic")
        ]
        runs = "".join(f"    {line}\n" for line in lines)
        (folder / "config/bench.yaml").write_text(
            f"bench:\n  dataset: bench\n  runs:\n{runs}  tables:\n    t: {{title: t, rows: [fast], columns: [top1]}}\n"
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

    def job(self, run: str) -> Job:
        """A run of the workplace."""
        return Job(
            load_experiment(self.folder / "config/bench.yaml"), run, 0, self.folder / "results", Machine(workers=0)
        )

    def shown(self) -> torch.Tensor:
        """The images as a loop normalises them."""
        return ((self.images.float() / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


def _write_images(raw: Path, train: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, count in (("train", train), ("val", CLASSES)):
        for number in range(max(count, CLASSES)):
            path = raw / split / f"class{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def ours(case: Case, run: str) -> Step:
    """The engine's step."""
    job = case.job(run)
    assert job.spec.recipe is not None
    fabric = start_devices(job.spec.recipe, None)
    training = build_training(job, job.spec.recipe, fabric, StopSignal(), time.monotonic())
    training.metric_logger.begin(training.name, 1, training.batches.steps, training.train_state)
    images = Batch(case.images, case.labels, torch.arange(case.batch, device=DEVICE))
    batches = repeat((images, None))
    sums = EpochSums({})
    training.learner.train()

    def step() -> None:
        _train_step(training, 0, None, batches, sums)
        training.metric_logger.step(case.batch, sums.means)

    return step


def plain(case: Case) -> Step:
    """The loop that people write."""
    student = create_model(case.student, CLASSES).to(DEVICE, memory_format=torch.channels_last).train()
    teacher = None
    if case.teacher is not None:
        teacher = create_model(case.teacher, CLASSES).to(DEVICE, memory_format=torch.channels_last)
        teacher.load_state_dict(torch.load(case.folder / "teacher.pth"))
        teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)

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
    """The step of timm's train.py with --kd-model-name (or none), --channels-last, --amp --amp-dtype bfloat16."""
    import timm
    from timm.optim import create_optimizer_v2
    from timm.task import ClassificationTask, LogitDistillationTask

    def network(name: str) -> nn.Module:
        made = timm.create_model(name.removeprefix("torchvision:"), num_classes=CLASSES)
        return made.to(DEVICE, memory_format=torch.channels_last)

    criterion, student = nn.CrossEntropyLoss(), network(case.student)
    if case.teacher is None:
        task: nn.Module = ClassificationTask(student, criterion, device=DEVICE, verbose=False)
    else:
        weights = {"distill_loss_weight": 0.9, "task_loss_weight": 0.1, "temperature": TEMPERATURE}
        task = LogitDistillationTask(student, network(case.teacher), criterion, device=DEVICE, verbose=False, **weights)
    optimizer = create_optimizer_v2(student, opt="sgd", lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
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


def take(way: Way, steps: int) -> float:
    """Seconds of so many steps."""
    step, deterministic = way
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic
    synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return time.perf_counter() - began


def measure(title: str, case: Case, builders: dict[str, tuple[Callable[[Case], Step], bool]], steps: int, rounds: int):
    """Run all ways in turns and return the table's rows."""
    ways: dict[str, Way] = {}
    peaks: dict[str, float] = {}
    for name, (build, deterministic) in builders.items():
        try:
            way = (build(case), deterministic)
            take(way, 3)
            if DEVICE.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                resident = torch.cuda.memory_allocated()
                take(way, 1)
                peaks[name] = (torch.cuda.max_memory_allocated() - resident) / 2**30
        except (ImportError, TypeError, RuntimeError) as error:  # a peer that is missing or has another interface
            print(f"{title}: {name} left out: {type(error).__name__}: {str(error).splitlines()[0][:200]}")
            continue
        ways[name] = way
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(take(way, steps))
    rows = []
    for name, seconds in taken.items():
        median = statistics.median(seconds) / steps
        ratio = statistics.median(theirs / own for theirs, own in zip(seconds, taken["ours"], strict=True))
        rows.append([title, name, 1e3 * median, case.batch / median, peaks.get(name), ratio])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=256, help="of the ResNets at full size (256); half at 32 pixels")
    parser.add_argument("--size", type=int, default=224, help="their image size (224)")
    parser.add_argument("--steps", type=int, default=8, help="of each way in a round (8); at 32 pixels five times")
    parser.add_argument("--rounds", type=int, default=7, help="that count (7)")
    given = parser.parse_args()
    large, small = given.steps, 5 * given.steps
    rivals = {"plain loop": (plain, False), "timm": (timm_task, False)}
    own = {
        "ours": (partial(ours, run="fast"), False),
        "ours, deterministic": (partial(ours, run="deterministic"), True),
    }
    r18, r50 = "torchvision:resnet18", "torchvision:resnet50"
    cases = {
        "KD R50 -> R18": (r18, r50, given.size, given.batch, large, own | rivals),
        "CE R18": (r18, None, given.size, given.batch, large, own | rivals),
        "CE ResNet-20, 32 px": (
            "cifar_resnet20",
            None,
            32,
            given.batch // 2,
            small,
            own | {"plain loop": (plain, False)},
        ),
    }
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, bf16-mixed, channels_last, batch {given.batch}, {given.size} px",
        flush=True,
    )
    rows = []
    for title, (student, teacher, size, batch, steps, builders) in cases.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(title, Case(Path(folder), student, teacher, size, batch), builders, steps, given.rounds)
    headers = ["step", "way", "ms", "images/s", "GiB above the resident", "ours is x faster"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", ".2f", ".0f", ".2f", ".3f")))


if __name__ == "__main__":
    main()
