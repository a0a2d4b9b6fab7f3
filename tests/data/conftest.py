"""Raw images on disk, made quickly."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillery.data.prepare import prepare_dataset
from distillery.experiment.schema.dataset import Dataset


def encoded(image, kind="png", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(number, size=(8, 6), mode="RGB"):
    """A picture of its own for every number."""
    generator = np.random.Generator(np.random.Philox(key=number))
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def noise_png(number, size=(8, 6), mode="RGB"):
    return encoded(noise(number, size, mode))


@dataclass(frozen=True)
class Place:
    """A raw data set and where it goes when prepared."""

    folder: Path

    @property
    def raw(self):
        return self.folder / "raw"

    @property
    def output(self):
        return self.folder / "results" / "toy"

    def write(self, path, content):
        target = self.raw / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def fill(self, train=5, val=2, classes=("ape", "bee"), val_folder="val"):
        number = 0
        for split, images in (("train", train), (val_folder, val)):
            for name in classes:
                for index in range(images):
                    number += 1
                    self.write(f"{split}/{name}/{index:03d}.png", noise_png(number))
        return self

    def tar(self, name="raw.tar", mode="w", top="", order=sorted):
        """Pack the raw folder, by default without a top folder and in order."""
        path = self.folder / name
        with tarfile.open(path, mode) as tar:
            for file in order(self.raw.rglob("*")):
                tar.add(file, top + file.relative_to(self.raw).as_posix(), recursive=False)
        return path

    def prepare(self, path=None, output=None, workers=1, **options):
        dataset = Dataset(path=str(path or self.raw), **options)
        return prepare_dataset("toy", dataset, output or self.output, workers)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture
def encode():
    return encoded


@pytest.fixture(name="noise")
def noise_fixture():
    return noise


@pytest.fixture(name="noise_png")
def noise_png_fixture():
    return noise_png
