"""How fast images reach a network, beside the usual ways and the fastest that are known, in one run.

    python benchmarks/loading.py [--only bytes floats reduced memory] [--images 960] [--rounds 3]

500 x 400 JPEGs to random 224 x 224 crops, two workers (or threads) each, in the end bytes, or floats that are
normalised. Every round goes through all ways one after the other, so that a busy machine slows them alike; the median
of the rounds' ratios counts. Where other work shares the cores, the processors' time of all processes and threads says
more than the clock. ``reduced`` has larger photographs, ``memory`` what loading keeps in memory.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rows
import torch
from images import batches_of, prepare, write_photographs, write_small_images
from PIL import Image
from rows import Row, beside
from tabulate import tabulate
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from distillery.data.arrow import ArrowImages
from distillery.data.dali import DaliLoader
from distillery.data.loader import train_loader
from distillery.data.manifest import load_manifest
from distillery.data.transforms import train_transform
from distillery.experiment.schema.augmentation import HorizontalFlip, RandomResizedCrop
from distillery.experiment.schema.block import IMAGENET
from distillery.experiment.schema.recipe import Preprocess
from distillery.models.normalize import Normalize

SIZE, BATCH, WORKERS = 224, 32, 2
Epoch = Callable[[], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Way:
    """A way to load an epoch, as what makes it: it gives batches of bytes, or of normalised floats."""

    name: str
    made: Callable[[], Epoch]
    goal: float | None = None  # how many times faster than it the first way is meant to be


def ours(
    images: ArrowImages, kind: str, reduced: bool = False, floats: bool = True, cache: Path | None = None
) -> Epoch:
    """Our loaders, with the normalisation that follows on the device."""
    operations = (
        RandomResizedCrop(name="random_resized_crop", reduced_decoding=reduced),
        HorizontalFlip(name="horizontal_flip"),
    )
    transform = train_transform(Preprocess(size=SIZE, resize=None, normalize="imagenet"), operations)
    batches, normalize = batches_of(images, BATCH), Normalize(IMAGENET.mean, IMAGENET.std)
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


def torchvision_io(raw: Path) -> Epoch:
    """What those write who know torchvision: its own decoder, bytes to the end."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    files = Files(raw, lambda path: read_file(str(path)), lambda encoded: decode_jpeg(encoded, ImageReadMode.RGB))
    return loaded_by_torch(files)


def simplejpeg_lines(raw: Path) -> Epoch:
    """The least that loads JPEGs fast: libjpeg-turbo on files that are in memory."""
    from simplejpeg import decode_jpeg

    kept = {path: path.read_bytes() for path in (raw / "train").rglob("*.jpg")}
    return loaded_by_torch(
        Files(raw, kept.__getitem__, lambda encoded: torch.from_numpy(decode_jpeg(encoded)).permute(2, 0, 1))
    )


def decoded_map(raw: Path, path: Path) -> Epoch:
    """As FFCV: decoded once, to a short side of 256, into a file of which training cuts its crops."""
    from simplejpeg import decode_jpeg

    files = sorted((raw / "train").rglob("*.jpg"))
    shape = len(files), 256, 320, 3
    pixels = np.memmap(path, np.uint8, "w+", shape=shape)
    for number, file in enumerate(files):
        pixels[number] = Image.fromarray(decode_jpeg(file.read_bytes())).resize((320, 256))
    pixels.flush()
    kept, places = np.memmap(path, np.uint8, "r", shape=shape), {file: place for place, file in enumerate(files)}
    return loaded_by_torch(
        Files(raw, lambda file: kept[places[file]], lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1))
    )


def timm_loader(raw: Path) -> Epoch:
    """timm's own loader, which hands over bytes and normalises them with its prefetcher."""
    from timm.data import create_dataset, create_loader

    loader = create_loader(
        create_dataset("", root=str(raw / "train")),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        num_workers=WORKERS,
        persistent_workers=True,
        color_jitter=0.0,
        device=torch.device("cpu"),
    )
    return lambda: (images for images, _ in loader)


def loaded_by_torch(files: TorchDataset) -> Epoch:
    """A DataLoader as everybody has it."""
    loader = DataLoader(files, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, drop_last=True)
    return lambda: (images for images, _ in loader)


def image_folder(raw: Path) -> Epoch:
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


def dali_pipeline(raw: Path) -> Epoch:
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


def time_loaders(ways: list[Way], images: int, rounds: int, title: str) -> list[Row]:
    """Print what each way takes; the rows have the first beside each of the others."""
    epochs: dict[str, Epoch] = {}
    found: list[Row] = []
    for way in ways:
        try:
            epochs[way.name] = way.made()
        except ImportError as error:
            found.append(Row("loader", f"{title}, {way.name}", reason=str(error)[:150]))
    clock, spent = rows.both_clocks({name: partial(load, epoch, images) for name, epoch in epochs.items()}, rounds)
    rows.show(f"{images} images, {title}, {WORKERS} workers", clock, spent, images)
    first = ways[0].name
    for way in ways[1:]:
        if way.name in epochs:
            pair = first, way.name, way.goal
            found += [
                beside("loader", title, clock, *pair, "images/s", images),
                beside("loader", f"{title}, CPU time", spent, *pair, "CPU ms", images),
            ]
    return found


def load(epoch: Epoch, images: int) -> None:
    """Go through an epoch."""
    seen = 0
    for batch in epoch():
        assert batch.shape[1] == 3
        seen += len(batch)
    assert seen == images // BATCH * BATCH


def compare_bytes(folder: Path, images: int, rounds: int) -> list[Row]:
    """500 x 400 JPEGs, to the bytes that go to a device; decoded anew, and from what was decoded before."""
    raw = folder / "raw"
    write_photographs(raw, images)
    prepared = prepare(raw, folder / "prepared")
    first = Way("loader: torch", lambda: ours(prepared, "torch", floats=False))
    ways = [
        first,
        Way("torchvision.io, v2", lambda: torchvision_io(raw), 1.1),
        Way("simplejpeg, v2, 30 lines", lambda: simplejpeg_lines(raw), 1.1),
    ]
    kept = [
        Way("loader: torch, --cache", lambda: ours(prepared, "torch", floats=False, cache=folder)),
        Way(first.name, first.made, 1.8),
        Way("a map of 320 x 256, 20 lines", lambda: decoded_map(raw, folder / "map")),
    ]
    found = time_loaders(ways, images, rounds, f"JPEG to {SIZE}, bytes")
    return found + time_loaders(kept, images, rounds, f"decoded cache to {SIZE}, bytes")


def compare_floats(folder: Path, images: int, rounds: int) -> list[Row]:
    """500 x 400 JPEGs, to normalised floats."""
    raw = folder / "raw"
    write_photographs(raw, images)
    prepared = prepare(raw, folder / "prepared")
    ways = [
        Way("loader: torch", lambda: ours(prepared, "torch")),
        Way("ImageFolder, Pillow, v2", lambda: image_folder(raw), 1.8),
        Way("timm's prefetcher", lambda: timm_loader(raw), 1.0),
        Way("DALI's CPU pipeline", lambda: dali_pipeline(raw), 1.0),
        Way("loader: dali, on the CPU", lambda: ours(prepared, "dali")),
    ]
    return time_loaders(ways, images, rounds, f"JPEG to {SIZE}, floats")


def compare_reduced(folder: Path, images: int, rounds: int) -> list[Row]:
    """Large JPEGs, whose crops are mostly larger than the input."""
    images, raw = max(images // 5, 2 * BATCH), folder / "raw"
    write_photographs(raw, images, width=1600, height=1200)
    prepared = prepare(raw, folder / "prepared")
    ways = [
        Way("reduced_decoding", lambda: ours(prepared, "torch", reduced=True)),
        Way("decoded whole", lambda: ours(prepared, "torch")),
        Way("ImageFolder, Pillow, v2", lambda: image_folder(raw), 1.8),
    ]
    return time_loaders(ways, images, rounds, f"1600 x 1200 to {SIZE}, floats")


def measure_memory(folder: Path, images: int, rounds: int) -> list[Row]:
    """Memory of the training process and its workers after the same number of images, of a small and a large set."""
    del images, rounds
    lines = []
    for count in (10_000, 100_000):
        here = folder / str(count)
        here.mkdir()
        write_small_images(here / "raw.tar", count)
        prepare(here / "raw.tar", here / "prepared")
        lines.append((count, *loaded_memory(here)))
    print("\n32 x 32 PNGs, 8,000 loaded by 2 workers: memory of all three processes that is not files on the disk\n")
    print(tabulate(lines, ("images in the set", "MB", "of it the orders"), tablefmt="github", floatfmt=".1f"))
    return []


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
    loader = train_loader(images, transform, batches_of(images, BATCH), 0, WORKERS, pin_memory=False)
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


PARTS = {"bytes": compare_bytes, "floats": compare_floats, "reduced": compare_reduced, "memory": measure_memory}


def main() -> None:
    """Run all parts, or some."""
    parser = rows.parser(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=960, help="[%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            rows.write(PARTS[name](Path(folder), options.images, options.rounds), options.rows)


if __name__ == "__main__":
    main()
