"""A small project of a student and a teacher, and the engine's own step on it; what benchmarks of training share."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from distillery.cluster.signals import StopSignal
from distillery.data.loader import Batch
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import Sample
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

TEMPERATURE, LR, MOMENTUM, DECAY = 4.0, 1e-3, 0.9, 1e-4
# More than a row of 16 logits keeps; and so few validation images that no teacher is refused for guessing.
CLASSES = 19
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Most processors emulate bfloat16.
PRECISION = "bf16-mixed" if DEVICE.type == "cuda" else "32-true"
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
KD = f"{{ce: {{weight: 0.1}}, kd: {{weight: 0.9, temperature: {TEMPERATURE}}}}}"

RECIPE = """epochs: 1
batch: {batch}
crops: 1
optimizer: {{name: sgd, lr: {lr}, momentum: {momentum}, weight_decay: {decay}}}
schedule: {{name: constant}}
preprocess: {{size: {size}, normalize: imagenet}}
precision: {precision}
deterministic: {deterministic}
"""
# Of the recipe, `fast` or `deterministic`; with a teacher or not.
RUNS = {
    "ce": ("fast", "{ce: {}}", None),
    "ce-deterministic": ("deterministic", "{ce: {}}", None),
    "live": ("fast", KD, "teacher"),
    "live-deterministic": ("deterministic", KD, "teacher"),
    "bank": ("fast", KD, "{run: teacher, answers: bank}"),
    "bank-deterministic": ("deterministic", KD, "{run: teacher, answers: bank}"),
    "bank-float16": ("fast", KD, "{run: teacher, answers: bank, rows: float16}"),
    "bank-top16": ("fast", KD, "{run: teacher, answers: bank, rows: {top: 16}}"),
}


class Case:
    """A student, perhaps with a teacher, at an image size and a batch, in a workplace of its own.

    ``objectives`` are those of further runs with the teacher; ``arguments`` are both networks'.
    """

    def __init__(
        self,
        folder: Path,
        student: str,
        teacher: str | None,
        size: int,
        batch: int,
        objectives: Mapping[str, str] | None = None,
        arguments: dict[str, int] | None = None,
        precision: str = PRECISION,
    ) -> None:
        self.folder, self.student, self.teacher, self.batch = folder, student, teacher, batch
        self.size, self.arguments = size, arguments or {}
        self.half = precision != "32-true"
        (folder / "config/recipes").mkdir(parents=True)
        for kind in ("fast", "deterministic"):
            (folder / f"config/recipes/{kind}.yaml").write_text(
                RECIPE.format(
                    batch=batch,
                    size=size,
                    lr=LR,
                    momentum=MOMENTUM,
                    decay=DECAY,
                    precision=precision,
                    deterministic=str(kind == "deterministic").lower(),
                )
            )
        torch.manual_seed(0)
        runs = RUNS | {name: ("fast", text, "teacher") for name, text in (objectives or {}).items()}
        lines = []
        if teacher is not None:
            torch.save(self.network(teacher).state_dict(), folder / "teacher.pth")
            weights = f"weights: '{folder / 'teacher.pth'}', preprocess: {{size: {size}, normalize: imagenet}}"
            lines.append(f"teacher: {{{self._model(teacher)}, {weights}}}")
        lines += [
            f"{name}: {{{self._model(student)}, recipe: {kind}, objective: {objective}"
            f"{f', teacher: {taught}' if taught else ''}}}"
            for name, (kind, objective, taught) in runs.items()
            if teacher is not None or not taught
        ]
        page = "".join(f"    {line}\n" for line in lines)
        (folder / "config/bench.yaml").write_text(
            f"bench:\n  dataset: bench\n  runs:\n{page}  tables:\n    t: {{title: t, rows: [ce], columns: [top1]}}\n"
        )
        (folder / "config/datasets.yaml").write_text(f"bench: {{path: {folder / 'raw'}}}\n")
        _write_images(folder / "raw", batch)
        with quiet():
            prepare_dataset("bench", Dataset(path=str(folder / "raw")), folder / "results/datasets/bench", 1)
            if teacher is not None:
                make_run(self.job("teacher"))
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator).to(DEVICE)
        self.labels = torch.randint(0, CLASSES, (batch,), generator=generator).to(DEVICE)
        self.mean, self.std = (torch.tensor(values, device=DEVICE).view(3, 1, 1) for values in (MEAN, STD))

    def _model(self, name: str) -> str:
        return f"model: '{name}', model_args: {self.arguments}"

    def network(self, name: str) -> nn.Module:
        """A network with as many classes as the images have."""
        return create_model(name, CLASSES, **self.arguments)

    def taught_by(self) -> nn.Module:
        """The teacher, frozen."""
        assert self.teacher is not None
        teacher = self.network(self.teacher)
        teacher.load_state_dict(torch.load(self.folder / "teacher.pth"))
        return teacher.eval().requires_grad_(False)

    def job(self, run: str, speed: str = "") -> Job:
        """A run of the workplace, with the machine's choices."""
        machine = Machine(workers=0, speed=chosen_speed(speed))
        return Job(load_experiment(self.folder / "config/bench.yaml"), run, 0, self.folder / "results", machine)

    def batch_of(self, view: bool = False) -> Batch:
        """What the engine's loader would hand out."""
        ids = torch.arange(self.batch, device=DEVICE)
        return Batch(self.images, self.labels, ids, view=self.images if view else None)

    def training(self, run: str, speed: str = "") -> Training:
        """A run's training, as ``distillery train`` builds it; its bank is recorded first."""
        with quiet():
            if run.startswith("bank"):
                record_answers(self.job(run, speed), StopSignal())
            job, recipe = settle(self.job(run, speed))
            fabric = start_devices(recipe, None, unused_parameters=True, speed=job.machine.speed)
            training = build_training(job, recipe, fabric, StopSignal(), time.monotonic())
            training.metric_logger.begin(training.name, 1, training.batches.steps, training.train_state)
        training.metric_logger.said = float("inf")  # no line a minute
        training.train_state.sessions.append({})
        return training

    def shown(self, layout: torch.memory_format) -> torch.Tensor:
        """The images as a loop normalises them."""
        return self.images.float().div_(255).sub_(self.mean).div_(self.std).contiguous(memory_format=layout)


def engine_step(training: Training, batch: Batch) -> Callable[[], object]:
    """The engine's step on a batch, and rows of its bank, which are read from the disk as in training."""
    stored: Iterator[Any] = repeat(None)
    if training.bank is not None:
        stored = training.bank.answers(_endless(training), pin_memory=DEVICE.type == "cuda")
    batches, sums = zip(repeat(batch), stored, strict=False), EpochSums({})
    training.learner.train()

    def step() -> None:
        _train_step(training, 0, None, batches, sums)
        training.metric_logger.step(len(batch.labels), sums.means)

    return step


def _endless(training: Training) -> Iterator[list[Sample]]:
    for _ in count():
        training.batches.start(0)
        yield from training.batches


def _write_images(raw: Path, train: int) -> None:
    generator = np.random.Generator(np.random.Philox(key=0))
    for split, images in (("train", train), ("val", CLASSES)):
        for number in range(max(images, CLASSES)):
            path = raw / split / f"class{number % CLASSES:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)


def clock() -> float:
    """Seconds of the processor on CPUs, which other work disturbs least; by the clock on GPUs, waiting for them."""
    if DEVICE.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What building says is of no concern here: its teachers were never trained."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
