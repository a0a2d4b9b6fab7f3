"""How fast images reach a network and how fast they are prepared, each beside the usual way, in one run.

    python benchmarks/loading.py [--only bytes|floats|reduced|small|training|prepare|memory] [--images N] [--rounds R]

Loaders: 500 x 400 JPEGs to random 224 x 224 crops, two workers (or threads) each, in the end bytes, or floats that are
normalised; and 32 x 32 PNGs, cropped and flipped by one process. Every round goes through all ways one after the other,
so that a busy machine slows them alike; the smallest time of each counts. Absolute times depend on the machine; the
ratios hardly do. Where other work shares the cores, the processors' time of all processes and threads, printed beside,
says more than the clock.
"""

import argparse
import itertools
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from distillery.data.arrow import ArrowImages
from distillery.data.dali import DaliLoader
from distillery.data.loader import train_loader
from distillery.data.manifest import load_manifest
from distillery.data.memory import MemoryTraining, squares_of
from distillery.data.orders import shuffled_order
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import train_transform
from distillery.experiment.schema.augmentation import HorizontalFlip, RandomCrop, RandomResizedCrop
from distillery.experiment.schema.block import IMAGENET
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.recipe import Preprocess
from distillery.models.normalize import Normalize

SIZE, BATCH, WORKERS, CLASSES = 224, 32, 2, 8


@dataclass(frozen=True)
class Way:
    """A way to load an epoch: gives batches of bytes, or of normalised floats."""

    name: str
    epoch: Callable[[], Iterable[torch.Tensor]]
    target: float | None = None  # how many times faster than it the first way is meant to be


def photograph(number: int, width: int = 500, height: int = 400) -> bytes:
    """A JPEG with detail at every scale, of about the bytes that a photograph of this size has."""
    generator = np.random.Generator(np.random.Philox(key=number))
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    for cells, weight in ((8, 0.6), (40, 0.25), (200, 0.1), (height, 0.05)):
        noise = generator.integers(0, 256, (cells, cells * width // height, 3), dtype=np.uint8)
        pixels += weight * np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))
    buffer = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def write_photographs(raw: Path, images: int, **size: int) -> None:
    """A class-folder tree; of many images, every hundredth is a new one."""
    fresh = [photograph(number, **size) for number in range(min(images, 100))]
    for number in range(images):
        for split in ("train", "val") if number < CLASSES else ("train",):
            path = raw / split / f"class{number % CLASSES}" / f"{number:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            # A comment makes each file its own, so that none counts as a copy.
            path.write_bytes(fresh[number % len(fresh)] + f"{split}{number}".encode())


def prepare(source: Path, output: Path, workers: int = WORKERS) -> ArrowImages:
    """Prepare quietly."""
    with redirect_stderr(StringIO()):
        manifest = prepare_dataset(output.name, Dataset(path=str(source)), output, workers)
    return ArrowImages(output, manifest, "train")


def batches_of(images: ArrowImages, batch: int = BATCH) -> GlobalBatches:
    """One epoch, shuffled."""
    return GlobalBatches(shuffled_order(len(images), 0), len(images), batch)


def ours(
    images: ArrowImages, kind: str, reduced: bool = False, floats: bool = True, cache: Path | None = None
) -> Callable[[], Iterable[torch.Tensor]]:
    """Our loaders, with the normalisation that follows on the device."""
    operations = (
        RandomResizedCrop(name="random_resized_crop", reduced_decoding=reduced),
        HorizontalFlip(name="horizontal_flip"),
    )
    transform = train_transform(Preprocess(size=SIZE, resize=None, normalize="imagenet"), operations)
    batches, normalize = batches_of(images), Normalize(IMAGENET.mean, IMAGENET.std)
    if kind == "dali":
        loader: Iterable = DaliLoader(images, transform, batches, 0, WORKERS, torch.device("cpu"))
    else:
        loader = train_loader(images, transform, batches, 0, WORKERS, pin_memory=False, cache=cache)
    return lambda: (normalize(batch.images) if floats else batch.images for batch in loader)


class Files(TorchDataset):
    """Files of class folders, read, decoded, cropped and flipped by what is given."""

    def __init__(self, raw: Path, read: Callable[[Path], Any], decode: Callable[[Any], torch.Tensor]) -> None:
        self.files = sorted((raw / "train").rglob("*.jpg"))
        self.labels = [int(file.parent.name.removeprefix("class")) for file in self.files]
        self.read, self.decode = read, decode
        self.transform = v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.decode(self.read(self.files[index]))), self.labels[index]


def torchvision_io(raw: Path) -> Callable[[], Iterable[torch.Tensor]]:
    """What those write who know torchvision: its own decoder, bytes to the end."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    files = Files(raw, lambda path: read_file(str(path)), lambda encoded: decode_jpeg(encoded, ImageReadMode.RGB))
    return loaded_by_torch(files)


def simplejpeg_lines(raw: Path) -> Callable[[], Iterable[torch.Tensor]]:
    """The least that loads JPEGs fast: libjpeg-turbo on files that are in memory."""
    from simplejpeg import decode_jpeg

    kept = {path: path.read_bytes() for path in (raw / "train").rglob("*.jpg")}
    return loaded_by_torch(
        Files(raw, kept.__getitem__, lambda encoded: torch.from_numpy(decode_jpeg(encoded)).permute(2, 0, 1))
    )


def loaded_by_torch(files: TorchDataset) -> Callable[[], Iterable[torch.Tensor]]:
    """A DataLoader as everybody has it."""
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True)
    return lambda: (images for images, _ in loader)


def image_folder(raw: Path) -> Callable[[], Iterable[torch.Tensor]]:
    """What people write: ImageFolder, Pillow, torchvision's v2 transforms, a DataLoader."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET.mean, IMAGENET.std),
        ]
    )
    loader = DataLoader(
        ImageFolder(raw / "train", transform),
        BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        drop_last=True,
    )
    return lambda: (images for images, _ in loader)


def dali_pipeline(raw: Path) -> Callable[[], Iterable[torch.Tensor]]:
    """DALI's own CPU pipeline for ImageNet: decode the crop alone, resize, mirror, normalise."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None, prefetch_queue_depth=2)
    def pipeline():
        encoded, _ = fn.readers.file(file_root=str(raw / "train"), random_shuffle=True, name="files")
        image = fn.decoders.image_random_crop(encoded, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        image = fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_TRIANGULAR)
        return fn.crop_mirror_normalize(
            image,
            mirror=fn.random.coin_flip(probability=0.5),
            dtype=types.FLOAT,
            mean=[255 * value for value in IMAGENET.mean],
            std=[255 * value for value in IMAGENET.std],
            output_layout="CHW",
        )

    built = pipeline()
    built.build()

    def epoch() -> Iterable[torch.Tensor]:
        for _ in range(built.epoch_size("files") // BATCH):
            (images,) = built.run()
            yield torch.utils.dlpack.from_dlpack(images.as_tensor()).clone()

    return epoch


def time_loaders(ways: list[Way], images: int, rounds: int, title: str) -> None:
    """Print milliseconds an image of each way, by the clock and of processors, and how much faster the first is."""
    best = {way.name: (float("inf"), float("inf")) for way in ways}
    for turn in range(rounds + 1):
        for way in ways:
            spent, began, seen = processor_seconds(), time.perf_counter(), 0
            for batch in way.epoch():
                assert batch.shape[1] == 3
                seen += len(batch)
            assert seen == images // len(batch) * len(batch)
            if turn:  # the first epoch starts workers and fills the experiment cache
                taken = (time.perf_counter() - began) / seen, (processor_seconds() - spent) / seen
                best[way.name] = (min(best[way.name][0], taken[0]), min(best[way.name][1], taken[1]))
    first = best[ways[0].name]
    rows = []
    for way in ways:
        clock, processor = best[way.name]
        ratio = clock / first[0]
        meant = "" if way.target is None else f">= {way.target:.1f}: {'yes' if ratio >= way.target else 'NO'}"
        rows.append((way.name, 1000 * clock, 1 / clock, ratio, meant, 1000 * processor, processor / first[1]))
    print(f"\n{title}\n")
    headers = ("loader", "ms an image", "images/s", "times the first", "meant to be", "processor ms", "times the first")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=(".2f", ".2f", ".0f", ".2f", "", ".2f", ".2f")))


def processor_seconds() -> float:
    """Processor time of this process, all its threads, and its living children."""
    children = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    pids = [os.getpid(), *map(int, itertools.chain(*children))]
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare_bytes(folder: Path, images: int, rounds: int) -> None:
    """500 x 400 JPEGs, to the bytes that go to a device."""
    write_photographs(folder / "raw", images)
    prepared = prepare(folder / "raw", folder / "prepared")
    ways = [
        Way("loader: torch", ours(prepared, "torch", floats=False)),
        Way("torchvision.io, v2", torchvision_io(folder / "raw"), 1.1),
        Way("simplejpeg, v2, in 30 lines", simplejpeg_lines(folder / "raw"), 1.1),
        Way("loader: torch, its cache filled", ours(prepared, "torch", floats=False, cache=folder)),
    ]
    title = f"{images} JPEGs of 500 x 400 to {SIZE} x {SIZE}, bytes, {WORKERS} workers"
    time_loaders(ways, images, rounds, title)


def compare_small(folder: Path, images: int, rounds: int) -> None:
    """32 x 32 PNGs, padded by 4, cropped and flipped, in batches of 128 by this process alone."""
    images = 10 * images // 128 * 128 + CLASSES
    write_small_images(folder / "raw.tar", images)
    prepared = prepare(folder / "raw.tar", folder / "prepared")
    operations = RandomCrop(name="random_crop", padding=4), HorizontalFlip(name="horizontal_flip")
    preprocess = Preprocess(size=32)
    transform, squares = train_transform(preprocess, operations), squares_of(prepared, preprocess, torch.device("cpu"))
    batches = batches_of(prepared, 128)
    kept = MemoryTraining(prepared, transform, batches, 0, squares)
    workers = train_loader(prepared, transform, batches, 0, 0, pin_memory=False)
    ways = [
        Way("loader: memory", lambda: (batch.images for batch in kept), None),
        Way("loader: torch", lambda: (batch.images for batch in workers)),
        Way("tensors in memory, in 12 lines", tensors_in_memory(squares.take(np.arange(len(prepared)))), 1.0),
        Way("torchvision's CIFAR10 and v2", torchvision_cifar(squares.take(np.arange(len(prepared))))),
    ]
    time_loaders(ways, len(prepared), rounds, f"{len(prepared)} PNGs of 32 x 32, one process; meant: 15,000 images/s")


def tensors_in_memory(pixels: torch.Tensor) -> Callable[[], Iterable[torch.Tensor]]:
    """The least that augments by the batch: draws that nobody can repeat."""

    def epoch() -> Iterable[torch.Tensor]:
        order, padded = torch.randperm(len(pixels)), F.pad(pixels, (4, 4, 4, 4))
        for ids in order.split(128)[: len(pixels) // 128]:
            rows, columns = (torch.randint(0, 9, (128, 1)) + torch.arange(32) for _ in range(2))
            columns = torch.where(torch.rand(128, 1) < 0.5, columns.flip(1), columns)
            places = torch.arange(128)[:, None, None], rows[:, :, None], columns[:, None, :]
            yield padded[ids][places[0], :, places[1], places[2]].permute(0, 3, 1, 2)

    return epoch


def torchvision_cifar(pixels: torch.Tensor) -> Callable[[], Iterable[torch.Tensor]]:
    """As torchvision.datasets.CIFAR10 hands out its images, with the usual transforms."""
    arrays = pixels.permute(0, 2, 3, 1).numpy()
    transform = v2.Compose(
        [v2.RandomCrop(32, 4), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )

    class Cifar(TorchDataset):
        def __len__(self) -> int:
            return len(arrays)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.fromarray(arrays[index]))

    return lambda: iter(DataLoader(Cifar(), 128, shuffle=True, drop_last=True))


def compare_loaders(folder: Path, images: int, rounds: int) -> None:
    """500 x 400 JPEGs, to normalised floats."""
    write_photographs(folder / "raw", images)
    prepared = prepare(folder / "raw", folder / "prepared")
    ways = [
        Way("loader: torch", ours(prepared, "torch")),
        Way("ImageFolder, Pillow, v2", image_folder(folder / "raw"), 1.8),
        Way("DALI's CPU pipeline", dali_pipeline(folder / "raw"), 1.0),
        Way("loader: dali, on the CPU", ours(prepared, "dali")),
    ]
    time_loaders(ways, images, rounds, f"{images} JPEGs of 500 x 400 to {SIZE} x {SIZE}, {WORKERS} workers")


def compare_reduced(folder: Path, images: int, rounds: int) -> None:
    """Large JPEGs, whose crops are mostly larger than the input."""
    images = max(images // 5, 2 * BATCH)
    write_photographs(folder / "raw", images, width=1600, height=1200)
    prepared = prepare(folder / "raw", folder / "prepared")
    ways = [
        Way("reduced_decoding", ours(prepared, "torch", reduced=True)),
        Way("decoded whole", ours(prepared, "torch")),
        Way("ImageFolder, Pillow, v2", image_folder(folder / "raw"), 1.8),
    ]
    time_loaders(ways, images, rounds, f"{images} JPEGs of 1600 x 1200 to {SIZE} x {SIZE}, {WORKERS} workers")


def compare_prepare(folder: Path, images: int, rounds: int) -> None:
    """Preparing checks, counts and hashes every image; copying the same files does not."""
    write_photographs(folder / "raw", images)
    with tarfile.open(folder / "raw.tar", "w") as tar:
        for split in ("train", "val"):
            tar.add(folder / "raw" / split, split)
    copy, unpacked = folder / "copy", folder / "unpacked"
    ways: dict[str, Callable[[], object]] = {
        "prepare, from the folder": lambda: prepare(folder / "raw", folder / "a"),
        "prepare, from the folder, one process": lambda: prepare(folder / "raw", folder / "a", 1),
        "prepare, from the tar": lambda: prepare(folder / "raw.tar", folder / "b"),
        "cp -r": lambda: subprocess.run(["cp", "-r", folder / "raw", copy], check=True),
        "tar xf": lambda: subprocess.run(["tar", "xf", folder / "raw.tar", "-C", unpacked], check=True),
    }
    best = dict.fromkeys(ways, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, way in ways.items():
            for old in (copy, unpacked, folder / "a", folder / "b"):
                shutil.rmtree(old, ignore_errors=True)
            unpacked.mkdir()
            os.sync()
            spent, began = sum(os.times()[:4]), time.perf_counter()
            way()
            os.sync()
            taken = time.perf_counter() - began, sum(os.times()[:4]) - spent
            best[name] = (min(best[name][0], taken[0]), min(best[name][1], taken[1]))
    size = sum(path.stat().st_size for path in (folder / "raw").rglob("*.jpg")) / 1e6
    rows = [
        (name, clock, images / clock, size / clock, clock / best["cp -r"][0], 1000 * processor / images)
        for name, (clock, processor) in best.items()
    ]
    print(f"\n{images} JPEGs of 500 x 400 ({size:.0f} MB), {WORKERS} processes, on the disk in the end\n")
    headers = ("way", "s", "images/s", "MB/s", "times cp -r", "processor ms an image")
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", ".2f", ".0f", ".0f", ".1f", ".2f")))


def compare_training(folder: Path, images: int, rounds: int) -> None:
    """A whole training of the digits' small student, from its start to its last file, with images in memory and not."""
    del images
    root = Path(__file__).parents[1]
    shutil.copytree(root / "config", folder / "config")
    command = [os.sys.executable, "-m", "distillery"]
    subprocess.run([*command, "prepare", "digits"], cwd=folder, check=True, capture_output=True)
    spent: dict[str, list[float]] = {"memory": [], "torch": []}
    weights = set()
    for _ in range(rounds):
        for loader, seconds in spent.items():
            shutil.rmtree(folder / "results/digits", ignore_errors=True)
            train = [*command, "train", "config/digits.yaml", "resnet8", "--threads", "1", "--workers", "1"]
            began = sum(os.times()[2:4])
            subprocess.run([*train, "--loader", loader], cwd=folder, check=True, capture_output=True)
            seconds.append(sum(os.times()[2:4]) - began)
            weights.add((folder / "results/digits/resnet8/seed0/weights.safetensors").read_bytes())
    assert len(weights) == 1, "the loaders train different networks"
    best = {loader: min(seconds) for loader, seconds in spent.items()}
    rows = [(f"loader: {loader}", seconds, seconds / best["memory"]) for loader, seconds in best.items()]
    print("\nTraining resnet8 on the digits, equal weights\n")
    print(tabulate(rows, ("loader", "processor s", "times the first"), tablefmt="github", floatfmt=".2f"))


def measure_memory(folder: Path, images: int, rounds: int) -> None:
    """Memory of the training process and its workers after the same number of images, of a small and a large set."""
    del images, rounds
    rows = []
    for count in (10_000, 100_000):
        here = folder / str(count)
        here.mkdir()
        write_small_images(here / "raw.tar", count)
        prepare(here / "raw.tar", here / "prepared")
        rows.append((count, *loaded_memory(here)))
    print("\n32 x 32 PNGs, 8,000 loaded by 2 workers: memory of all three processes that is not files on the disk\n")
    print(tabulate(rows, ("images in the set", "MB", "of it the orders"), tablefmt="github", floatfmt=".1f"))


def write_small_images(path: Path, count: int) -> None:
    """A tar of a class-folder tree of noise."""
    generator = np.random.Generator(np.random.Philox(key=0))
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            buffer = BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                buffer, "png", compress_level=1
            )
            split = "train" if number >= CLASSES else "val"
            entry = tarfile.TarInfo(f"{split}/class{number % CLASSES}/{number:06d}.png")
            entry.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(entry, buffer)


def loaded_memory(folder: Path) -> tuple[float, float]:
    """In a process of its own: megabytes after loading, and those of an epoch's order and labels."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import loading
loading.print_memory(loading.Path({str(folder)!r}))
"""
    done = subprocess.run([os.sys.executable, "-c", code], check=True, capture_output=True, text=True)
    total, orders = done.stdout.split()[-2:]
    return float(total), float(orders)


def print_memory(folder: Path) -> None:
    """Load 8,000 images and print what this process and its workers then hold."""
    images = ArrowImages(folder / "prepared", load_manifest(folder / "prepared"), "train")
    transform = train_transform(Preprocess(size=32, resize=None, normalize="imagenet"), ())
    loader = train_loader(images, transform, batches_of(images), 0, WORKERS, pin_memory=False)
    iterator = iter(loader)
    for _ in range(8000 // BATCH):
        next(iterator)
    workers = [worker.pid for worker in iterator._workers]
    orders = 2 * 8 * len(images) / 1e6 + images.labels.nbytes / 1e6
    print(sum(private_megabytes(pid) for pid in (os.getpid(), *workers)), orders)


def private_megabytes(pid: int) -> float:
    """A process's share of memory that no file on the disk backs."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Pss_Anon", "Pss_Shmem")) / 1e3


PARTS = {
    "bytes": compare_bytes,
    "floats": compare_loaders,
    "reduced": compare_reduced,
    "small": compare_small,
    "training": compare_training,
    "prepare": compare_prepare,
    "memory": measure_memory,
}


def main() -> None:
    """Run all parts, or one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--images", type=int, default=960, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in PARTS.items():
        if options.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                part(Path(folder), options.images, options.rounds)


if __name__ == "__main__":
    main()
