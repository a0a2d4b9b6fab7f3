"""What the training loop adds to a step: ours beside the thirty lines that people write, in one run.

    python benchmarks/loop.py [--only tiny|resnet20] [--rounds 9] [--threads 1] [--clock]

Both take the same steps on the same images in memory, in float32 with plain SGD: a network whose step takes about 4 ms,
where every line of Python shows, and ResNet-20 at batch 128. Ours is the whole loop of an epoch, with sums, alarms,
looks for a signal and the metric logger. Every round goes through all ways in turn; the median of the ratios counts.
Times are of the processor, which other work on the machine disturbs least; by the clock with ``--clock``.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch.nn import functional as F

from distillery.cluster.signals import StopSignal
from distillery.data.loader import Batch
from distillery.data.prepare import prepare_dataset
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.models import create_model
from distillery.training import loop
from distillery.training.build import build_training
from distillery.training.devices import start_devices
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

CLASSES, LR, MOMENTUM, DECAY, TEMPERATURE = 10, 1e-3, 0.9, 5e-4, 4.0
# Network, its arguments, side of its images, batch, steps of a round.
CASES: dict[str, tuple[str, dict[str, int], int, int, int]] = {
    "tiny": ("cifar_resnet8", {"width": 4}, 8, 16, 150),
    "resnet20": ("cifar_resnet20", {}, 32, 128, 3),
}
RECIPE = """epochs: 1
batch: {batch}
optimizer: {{name: sgd, lr: {lr}, momentum: {momentum}, weight_decay: {decay}}}
schedule: {{name: constant}}
preprocess: {{size: {size}, normalize: imagenet}}
deterministic: {deterministic}
"""
Way = Callable[[], object]


def write_project(folder: Path, case: str) -> None:
    """An experiment of a teacher, and of students alone and taught."""
    model, arguments, size, batch, _ = CASES[case]
    (folder / "config/recipes").mkdir(parents=True)
    for deterministic in ("true", "false"):
        (folder / f"config/recipes/{deterministic}.yaml").write_text(
            RECIPE.format(batch=batch, lr=LR, momentum=MOMENTUM, decay=DECAY, size=size, deterministic=deterministic)
        )
    torch.save(create_model(model, CLASSES, **arguments).state_dict(), folder / "teacher.pth")
    network = f"model: {model}, model_args: {arguments}"
    taught = f"teacher: teacher, objective: {{ce: {{weight: 0.1}}, kd: {{weight: 0.9, temperature: {TEMPERATURE}}}}}"
    prepared = f"preprocess: {{size: {size}, normalize: imagenet}}"
    lines = [f"teacher: {{{network}, weights: '{folder / 'teacher.pth'}', {prepared}}}"]
    for recipe in ("true", "false"):
        lines += [
            f"ce-{recipe}: {{{network}, recipe: '{recipe}'}}",
            f"kd-{recipe}: {{{network}, recipe: '{recipe}', {taught}}}",
        ]
    runs = "".join(f"    {line}\n" for line in lines)
    (folder / "config/bench.yaml").write_text(
        f"bench:\n  dataset: bench\n  runs:\n{runs}  tables:\n    t: {{rows: [ce-true], columns: [top1]}}\n"
    )
    (folder / "config/datasets.yaml").write_text(f"bench: {{path: {folder / 'raw'}}}\n")
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, count in (("train", batch), ("val", CLASSES)):
        for number in range(max(count, CLASSES)):
            path = folder / "raw" / split / f"class{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    prepare_dataset("bench", Dataset(path=str(folder / "raw")), folder / "results/datasets/bench", 1)
    make_run(job_of(folder, "teacher"))


def job_of(folder: Path, run: str) -> Job:
    """A run of the project."""
    return Job(load_experiment(folder / "config/bench.yaml"), run, 0, folder / "results", Machine(workers=0))


def batch_of(case: str) -> Batch:
    """The images that all ways see."""
    _, _, size, batch, _ = CASES[case]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.randint(0, CLASSES, (batch,), generator=generator), torch.arange(batch))


def ours(folder: Path, case: str, run: str) -> Way:
    """The engine's epoch, on batches that are there."""
    job, steps = job_of(folder, run), CASES[case][-1]
    assert job.spec.recipe is not None
    training = build_training(
        job, job.spec.recipe, start_devices(job.spec.recipe, None), StopSignal(), time.monotonic()
    )
    training.metric_logger.begin(training.name, 1, steps, training.train_state)
    item, deterministic = batch_of(case), torch.are_deterministic_algorithms_enabled()
    batches: Any = training.batches
    batches.steps, batches.step_images, batches.start = steps, lambda step: len(item.labels), lambda epoch, step: None
    training.train_loader = repeat(item)
    training.train_state.sessions.append({})

    def epoch() -> None:
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        training.train_state.step, training.train_state.sums = 0, []
        loop._train_epoch(training, time.monotonic())

    return epoch


def plain(case: str, taught: bool) -> Way:
    """The loop that people write."""
    model, arguments, _, _, steps = CASES[case]
    student, teacher = create_model(model, CLASSES, **arguments).train(), create_model(model, CLASSES, **arguments)
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    item, mean, std = batch_of(case), torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.1

    def epoch() -> None:
        torch.use_deterministic_algorithms(False)
        for _ in range(steps):
            images = item.images.float().div_(255).sub_(mean).div_(std)
            logits_BC = student(images)
            loss = F.cross_entropy(logits_BC, item.labels)
            if taught:
                with torch.no_grad():
                    answers_BC = teacher(images)
                soft = [F.log_softmax(each / TEMPERATURE, 1) for each in (logits_BC, answers_BC)]
                loss = 0.1 * loss + 0.9 * TEMPERATURE**2 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return epoch


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--rounds", type=int, default=9, help="[%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="[%(default)s]")
    parser.add_argument("--clock", action="store_true", help="time by the clock")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock else time.process_time
    rows = []
    for case in CASES:
        if options.only not in (None, case):
            continue
        with tempfile.TemporaryDirectory() as name:
            folder, steps = Path(name), CASES[case][-1]
            write_project(folder, case)
            for kind in ("ce", "kd"):
                ways = {"thirty lines": plain(case, kind == "kd")} | {
                    f"loop{', deterministic' if deterministic == 'true' else ''}": ours(
                        folder, case, f"{kind}-{deterministic}"
                    )
                    for deterministic in ("false", "true")
                }
                taken: dict[str, list[float]] = {way: [] for way in ways}
                for turn in range(options.rounds + 2):
                    for way, epoch in ways.items():
                        began = clock()
                        epoch()
                        if turn > 1:
                            taken[way].append((clock() - began) / steps)
                for way, seconds in taken.items():
                    ratios = [first / own for first, own in zip(taken["thirty lines"], seconds, strict=True)]
                    rows.append((case, kind, way, 1000 * statistics.median(seconds), statistics.median(ratios)))
    print(f"\nSteps in turns, {options.threads} threads; meant: at least 0.97 of the thirty lines\n")
    headers = ("network", "objective", "loop", "ms a step", "of the thirty lines")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", "", ".3f", ".3f")))


if __name__ == "__main__":
    main()
