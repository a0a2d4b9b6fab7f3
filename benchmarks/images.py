"""Images for benchmarks: photographs and small noise, as raw data and prepared."""

import tarfile
from contextlib import redirect_stderr
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from distillery.data.arrow import ArrowImages
from distillery.data.orders import shuffled_order
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import GlobalBatches
from distillery.experiment.schema.dataset import Dataset

CLASSES = 8


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


def prepare(source: Path, output: Path, workers: int = 2) -> ArrowImages:
    """Prepare quietly."""
    with redirect_stderr(StringIO()):
        manifest = prepare_dataset(output.name, Dataset(path=str(source)), output, workers)
    return ArrowImages(output, manifest, "train")


def batches_of(images: ArrowImages, batch: int) -> GlobalBatches:
    """One epoch, shuffled."""
    return GlobalBatches(shuffled_order(len(images), 0), len(images), batch)
