"""How fast small images that fit in memory reach a network, beside the usual ways, in one run.

    python benchmarks/small.py [--images 9600] [--rounds 5]

32 x 32 PNGs, padded by 4, cropped and flipped, in batches of 128, as bytes, by one process. Every round goes through
all ways in turn; the processor's time counts.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import rows
import torch
from images import CLASSES, batches_of, prepare, write_small_images
from PIL import Image
from rows import Row, beside
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from distillery.data.loader import train_loader
from distillery.data.memory import MemoryTraining, squares_of
from distillery.data.transforms import train_transform
from distillery.experiment.schema.augmentation import HorizontalFlip, RandomCrop
from distillery.experiment.schema.recipe import Preprocess

BATCH = 128
IMAGES_A_SECOND = 15_000  # of a core, that a GPU does not wait


def tensors_in_memory(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """The least that augments by the batch: draws that nobody can repeat."""
    order, padded = torch.randperm(len(pixels)), F.pad(pixels, (4, 4, 4, 4))
    for ids in order.split(BATCH)[: len(pixels) // BATCH]:
        rows, columns = (torch.randint(0, 9, (BATCH, 1)) + torch.arange(32) for _ in range(2))
        columns = torch.where(torch.rand(BATCH, 1) < 0.5, columns.flip(1), columns)
        places = torch.arange(BATCH)[:, None, None], rows[:, :, None], columns[:, None, :]
        yield padded[ids][places[0], :, places[1], places[2]].permute(0, 3, 1, 2)


def torchvision_cifar(pixels: torch.Tensor) -> Iterable[torch.Tensor]:
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

    return DataLoader(Cifar(), BATCH, shuffle=True, drop_last=True)


def compare(folder: Path, images: int, rounds: int) -> list[Row]:
    """The loader's rows."""
    seen = images // BATCH * BATCH
    write_small_images(folder / "raw.tar", seen + CLASSES)
    prepared = prepare(folder / "raw.tar", folder / "prepared")
    operations = RandomCrop(name="random_crop", padding=4), HorizontalFlip(name="horizontal_flip")
    preprocess = Preprocess(size=32)
    transform, squares = train_transform(preprocess, operations), squares_of(prepared, preprocess, torch.device("cpu"))
    batches, pixels = batches_of(prepared, BATCH), squares.take(np.arange(len(prepared)))
    memory = MemoryTraining(prepared, transform, batches, 0, squares)
    loader = train_loader(prepared, transform, batches, 0, 0, pin_memory=False)
    cifar = torchvision_cifar(pixels)

    def all_of(epoch: Callable[[], Iterable[torch.Tensor]]) -> Callable[[], None]:
        def run() -> None:
            assert sum(len(images) for images in epoch()) == seen

        return run

    ways = {
        "loader: memory": all_of(lambda: (batch.images for batch in memory)),
        "tensors in 12 lines": all_of(lambda: tensors_in_memory(pixels)),
        "torchvision's CIFAR10": all_of(lambda: cifar),
        "loader: torch": all_of(lambda: (batch.images for batch in loader)),
    }
    taken = rows.in_turns(ways, rounds)  # the first epoch decodes
    what, first, *others = "32 x 32, pad, crop, flip", *ways
    found = [
        beside(
            "small images", what, taken, first, rival, 1.0 if rival.startswith("tensors") else None, "images/s", seen
        )
        for rival in others
    ]
    rate = found[0].ours or 0.0
    limit = Row("small images", what, rate, "the goal", IMAGES_A_SECOND, "images/s", rate / IMAGES_A_SECOND, 1.0)
    return [limit, *found]


def main() -> None:
    """Print the table."""
    parser = rows.parser(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=9600, help="[%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows.write(compare(Path(folder), options.images, options.rounds), options.rows)


if __name__ == "__main__":
    main()
