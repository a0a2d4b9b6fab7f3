"""A distillation step with a live teacher, with a bank of its answers, and plain training, on this machine.

    python benchmarks/bank.py [--large 8] [--small 64] [--rounds 5]

All ways take the loop's own step on trainings built as ``distillery train`` builds them, on the same images, which lie
on the device; the bank's rows are read from the disk as in training. Every round takes some steps of each way in
turn; the median of the rounds' ratios counts. The goal: a step with a bank costs what one of plain training costs.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from distillery.cluster.signals import StopSignal
from distillery.data.loader import Batch
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import Sample
from distillery.distill.step import Outputs
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.models import create_model
from distillery.training.answers import folder_of, record_answers
from distillery.training.build import build_training
from distillery.training.devices import start_devices
from distillery.training.epoch_sums import EpochSums
from distillery.training.job import Job, Machine
from distillery.training.loop import Training, _train_step
from distillery.training.run import make_run

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# More classes than a row of 16 logits keeps, and fewer validation images than a teacher that guesses is refused for.
CLASSES, BATCHES = 19, 4
RECIPE = """epochs: 1
batch: {batch}
crops: 1
optimizer: {{name: sgd, lr: 0.001, momentum: 0.9, weight_decay: 1.0e-4}}
schedule: {{name: constant}}
preprocess: {{size: {size}, normalize: imagenet}}
precision: {precision}
channels_last: true
deterministic: false
"""
EXPERIMENT = """bench:
  dataset: bench
  runs:
    big: {{model: '{teacher}', weights: '{weights}', preprocess: {{size: {size}, normalize: imagenet}}}}
    plain: {{model: '{student}', recipe: bench}}
    live: {{model: '{student}', recipe: bench, teacher: big, objective: {kd}}}
    float32: {{model: '{student}', recipe: bench, objective: {kd}, teacher: {{run: big, answers: bank}}}}
    float16: {{model: '{student}', recipe: bench, objective: {kd}, teacher: {{run: big, answers: bank, rows: float16}}}}
    top-16:
      model: '{student}'
      recipe: bench
      objective: {kd}
      teacher: {{run: big, answers: bank, rows: {{top: 16}}}}
  tables:
    t: {{rows: [plain], columns: [top1]}}
"""
KD = "{ce: {weight: 0.1}, kd: {weight: 0.9, temperature: 4}}"
WAYS = ("plain", "live", "float32", "float16", "top-16")


def workplace(folder: Path, teacher: str, student: str, size: int, batch: int) -> dict[str, Job]:
    """Prepare a few images and a teacher, and return the runs."""
    (folder / "config/recipes").mkdir(parents=True)
    precision = "bf16-mixed" if DEVICE.type == "cuda" else "32-true"
    (folder / "config/recipes/bench.yaml").write_text(RECIPE.format(batch=batch, size=size, precision=precision))
    torch.manual_seed(0)
    weights = folder / "teacher.pth"
    torch.save(create_model(teacher, CLASSES).state_dict(), weights)
    text = EXPERIMENT.format(teacher=teacher, student=student, weights=weights, size=size, kd=KD)
    (folder / "config/bench.yaml").write_text(text)
    (folder / "config/datasets.yaml").write_text(f"bench: {{path: {folder / 'raw'}}}\n")
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, images in (("train", max(BATCHES * batch, CLASSES)), ("val", CLASSES)):
        for number in range(images):
            path = folder / "raw" / split / f"class{number % CLASSES:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    prepare_dataset("bench", Dataset(path=str(folder / "raw")), folder / "results/datasets/bench", 1)
    experiment = load_experiment(folder / "config/bench.yaml")
    return {run: Job(experiment, run, 0, folder / "results", Machine(workers=0)) for run in ("big", *WAYS)}


def step_of(job: Job, images: torch.Tensor) -> Callable[[], None]:
    """The engine's step on the images, with what the run looks up."""
    assert job.spec.recipe is not None
    fabric = start_devices(job.spec.recipe, None)
    training = build_training(job, job.spec.recipe, fabric, StopSignal(), time.monotonic())
    training.metric_logger.begin(training.name, 1, training.batches.steps, training.train_state)
    labels = torch.arange(len(images), device=DEVICE) % CLASSES
    shown = repeat(Batch(images, labels, torch.arange(len(images), device=DEVICE)))
    stored: Iterator[Outputs | None] = repeat(None)
    if training.bank is not None:
        stored = training.bank.answers(_endless(training), pin_memory=DEVICE.type == "cuda")
    sums, batches = EpochSums({}), zip(shown, stored, strict=False)
    training.learner.train()

    def step() -> None:
        _train_step(training, 0, None, batches, sums)

    return step


def _endless(training: Training) -> Iterator[list[Sample]]:
    for _ in count():
        training.batches.start(0)
        yield from training.batches


def take(step: Callable[[], None], steps: int) -> float:
    """Seconds a step."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / steps


def measure(title: str, folder: Path, teacher: str, student: str, size: int, batch: int, steps: int, rounds: int):
    """Run all ways in turns and return the table's rows."""
    jobs = workplace(folder, teacher, student, size, batch)
    make_run(jobs["big"])
    for way in WAYS[2:]:
        record_answers(jobs[way], StopSignal())
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator).to(DEVICE)
    ways = {way: step_of(jobs[way], images) for way in WAYS}
    for step in ways.values():
        take(step, 2)
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, step in ways.items():
            taken[way].append(take(step, steps))
    rows = []
    for way, seconds in taken.items():
        median = statistics.median(seconds)
        over_live, over_plain = (
            statistics.median(theirs / own for theirs, own in zip(taken[other], seconds, strict=True))
            for other in ("live", "plain")
        )
        stored = sum(path.stat().st_size for path in folder_of(jobs[way]).glob("*.npy")) if way in WAYS[2:] else 0
        each = stored / max(BATCHES * batch, CLASSES) or None
        rows.append([title, way, 1e3 * median, batch / median, over_live, over_plain, each])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--large", type=int, default=8, help="batch of the ResNets at 224 pixels (8)")
    parser.add_argument("--small", type=int, default=64, help="batch at 32 pixels (64)")
    parser.add_argument("--size", type=int, default=224, help="of the large images (224)")
    parser.add_argument("--steps", type=int, default=2, help="of each way in a round (2); at 32 pixels four times")
    parser.add_argument("--rounds", type=int, default=5, help="that count (5)")
    given = parser.parse_args()
    cases = [
        ("ResNet-56 -> ResNet-20, 32 px", "cifar_resnet56", "cifar_resnet20", 32, given.small, 4 * given.steps),
        (
            f"R50 -> R18, {given.size} px",
            "torchvision:resnet50",
            "torchvision:resnet18",
            given.size,
            given.large,
            given.steps,
        ),
    ]
    rows = []
    for title, teacher, student, size, batch, steps in cases:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(title, Path(folder), teacher, student, size, batch, steps, given.rounds)
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}")
    headers = ["step", "teacher", "ms", "images/s", "x live", "x plain training", "bytes an image"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", ".1f", ".1f", ".2f", ".2f", ".0f")))


if __name__ == "__main__":
    main()
