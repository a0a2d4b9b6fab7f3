"""What an experiment's runs will take of a machine, and what is odd about their data, said before hours are paid."""

import os
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from distillery.data.manifest import FILE_NAME, TRAINING, Manifest, load_manifest
from distillery.errors import located
from distillery.experiment import Experiment, RunSpec
from distillery.models.facts import Network, network_bytes
from distillery.paths import SHARED_MEMORY, dataset_folder
from distillery.training.banks import BankForecast, forecast_banks, shown_bytes

# Batches that each worker of torch's loader prepares ahead.
PREFETCHED = 2
# Where nothing says how many classes there are.
CLASSES = 1000
# What the drivers of NVIDIA, AMD and Windows Subsystem for Linux show: without any, torch need not be asked for a GPU.
GPU_DEVICES = ("nvidia*", "kfd", "dxg")


class Forecast:
    """Estimates for an experiment, in bytes; activations, which no estimate short of a step tells, are not in them."""

    def __init__(self, experiment: Experiment, results: Path, workers: int) -> None:
        self.experiment, self.results, self.workers = experiment, results, workers
        self.folder = dataset_folder(results, experiment.config.dataset)
        prepared = (self.folder / FILE_NAME).is_file()
        self.manifest = load_manifest(self.folder, hash_new_shards=False) if prepared else None

    @property
    def classes(self) -> int:
        """How many classes there are, as far as it is known."""
        return len(self.manifest.classes) if self.manifest else self.experiment.dataset.classes or CLASSES

    @property
    def images(self) -> int:
        """How many training images there are, as far as it is known: 0 if not at all, without those of no label."""
        if self.manifest is None:
            return self.labelled
        return sum(self.manifest.splits[split].images for split in TRAINING if split in self.manifest.splits)

    @property
    def labelled(self) -> int:
        """How many of them have a label; 0 if it is not known yet."""
        if self.manifest is not None:
            return self.manifest.splits["train"].images if "train" in self.manifest.splits else 0
        images = self.experiment.dataset.images.get("train", 0)
        return images - round(images * (self.experiment.dataset.holdout or 0))

    @cached_property
    def banks(self) -> list[BankForecast]:
        """What the banks of its teachers' answers will hold, each once."""
        dataset = self.experiment.dataset
        counted = self.images and (self.manifest is not None or dataset.unlabelled is None)
        classes = len(self.manifest.classes) if self.manifest else dataset.classes
        return list(forecast_banks(self.experiment, self.results, self.images if counted else None, classes))

    def batches(self, run: str) -> int:
        """What a run's workers hold in shared memory."""
        spec = self.experiment.spec(run)
        assert spec.recipe is not None
        assert spec.objective is not None
        sizes = [spec.recipe.preprocess.size]
        live = [each.teacher.prepared_for for each in spec.by_teacher() if each.teacher and each.answers is None]
        sizes += {shown: shown.size for shown in live if shown is not None and spec.recipe.trains_apart(shown)}.values()
        views = 2 if spec.objective.needs().view else 1
        return self.workers * PREFETCHED * spec.recipe.batch * views * sum(3 * size**2 for size in sizes)

    def network(self, spec: RunSpec, size: int | None = None, images: int | None = None) -> int:
        """A run's weights, as on disk.

        Raises:
            UserError: there is no such network, it takes no images of ``size`` pixels a side, or cannot be trained on
                so many ``images`` of it.
        """
        classes = self.classes if spec.has_classifier else 0
        return network_bytes(Network.named(spec.model, classes, spec.model_args), size, images)

    def terms(self, spec: RunSpec) -> dict[str, int]:
        """What the terms of its objective remember."""
        terms = spec.objective.terms() if spec.objective else {}
        return {name: options.memory(self.images, self.classes) for name, options in terms.items()}

    def state(self, spec: RunSpec) -> int:
        """What a checkpoint of a run holds."""
        if spec.recipe is None:
            return 0
        optimizer = spec.recipe.optimizer
        states = (1 if getattr(optimizer, "momentum", 0) else 0) if optimizer.name == "sgd" else 2
        copies = 1 + states + (spec.recipe.ema is not None)
        return copies * self.network(spec) + sum(self.terms(spec).values())

    def memory(self, spec: RunSpec) -> int:
        """A run's state, gradients and teachers."""
        teachers = [each.teacher for each in spec.by_teacher() if each.teacher is not None]
        return self.state(spec) + self.network(spec) + sum(map(self.network, teachers))

    def disk(self) -> tuple[int, int]:
        """What all runs leave, and the most that one has beside it: two checkpoints, the best weights."""
        members = [self.experiment.spec(run, seed) for run, seed in self.experiment.members()]
        return sum(map(self.network, members)), max(2 * self.state(spec) + self.network(spec) for spec in members)

    def check_networks(self) -> None:
        """Try each network that is trained, in both modes, on images of its size in the smallest batch of an epoch.

        Raises:
            UserError: one cannot take them; the line names the run.
        """
        for run, recipe in self.experiment.recipes.items():
            is_alone = not recipe.drop_last and recipe.repeats == 1 and self.images % recipe.batch == 1
            images = 1 if is_alone else min(recipe.batch, 2)
            with located(self.experiment.where(run)):
                self.network(self.experiment.spec(run), recipe.preprocess.size, images)

    def line(self) -> str:
        """The estimates in words."""
        left, beside = self.disk()
        needed = max(self.memory(self.experiment.spec(run)) for run in self.experiment.config.runs)
        return (
            f"On disk the runs leave about {shown_bytes(left)}, and each has up to {shown_bytes(beside)} of "
            f"checkpoints while it trains{self._banks_line()}; in memory a run has up to {shown_bytes(needed)}, beside "
            "what its images take on the way."
        )

    def _banks_line(self) -> str:
        if not self.banks:
            return ""
        number, known = len(self.banks), [bank for bank in self.banks if bank.rows is not None]
        room = shown_bytes(sum(bank.bytes for bank in known)) if known else "room"
        line = f"; {number} bank{'s' * (number > 1)} of answers take{'s' * (number == 1)} {room} more"
        if len(known) < number:
            what = "the rest is" if known else "how much is"
            line += f" ({what} known once {self.experiment.config.dataset} is prepared)"
        return f"{line}, each until its last student is done (`snakemake --notemp` and `distillery answer` leave it)"

    def warnings(self) -> Iterator[str]:
        """What will not go well on this machine or with these data, a line each."""
        yield from self._shared_memory()
        yield from self._memory()
        left, beside = self.disk()
        place = next(path for path in (self.results, *self.results.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        banks = sum(bank.bytes for bank in self.banks if not bank.folder.exists())
        if left + beside + banks > free:
            also = f", and their banks of answers {shown_bytes(banks)}" if banks else ""
            yield (
                f"{self.results}: the runs of {self.experiment.path} leave about {shown_bytes(left)} and have up to "
                f"{shown_bytes(beside)} beside it while they train{also}, but its disk has {shown_bytes(free)} free; "
                "make room, or give another --results"
            )
        if self.manifest is not None:
            yield from _copies(self.manifest, self.folder / FILE_NAME)

    def _shared_memory(self) -> Iterator[str]:
        if not self.experiment.recipes or not self.workers or not SHARED_MEMORY.is_dir():
            return
        run = max(self.experiment.recipes, key=self.batches)
        wanted, free = self.batches(run), shutil.disk_usage(SHARED_MEMORY).free
        if wanted > free:
            yield (
                f"{self.experiment.where(run)}.batch: {self.experiment.recipes[run].batch}: {self.workers} workers "
                f"hold {shown_bytes(wanted)} of batches in {SHARED_MEMORY}, which has {shown_bytes(free)} free; use "
                f"fewer --workers, or give a container more by --shm-size={-(-wanted // 2**30)}g"
            )

    def _memory(self) -> Iterator[str]:
        there = _machine_memory()
        for run in self.experiment.recipes:
            spec = self.experiment.spec(run)
            wanted = self.memory(spec)
            if wanted > there:
                name, size = max(self.terms(spec).items(), key=lambda term: term[1])
                most = f"objective.{name}" if size > wanted // 2 else "model"
                yield (
                    f"{self.experiment.where(run)}.{most}: the run has {shown_bytes(wanted)} beside what its images "
                    f"take, but this machine {shown_bytes(there)}; use a larger one, or a smaller network or term"
                )


def _copies(manifest: Manifest, path: Path) -> Iterator[str]:
    copies = manifest.duplicates
    for key, pairs, what, cure in (
        (
            "contradicting",
            copies.contradicting,
            "copies of images have another label",
            "correct one of the labels",
        ),
        (
            "across_splits",
            copies.across_splits,
            "validation images are training images",
            "remove them from either",
        ),
    ):
        if pairs:
            first = " = ".join(pairs[0])
            yield f"{path}: duplicates.{key}: {len(pairs)} {what}, as {first}; {cure}, or measure with that in mind"


def _machine_memory() -> int:
    """Of the GPU where there is one, else of the machine."""
    if any(path for name in GPU_DEVICES for path in Path("/dev").glob(name)):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
