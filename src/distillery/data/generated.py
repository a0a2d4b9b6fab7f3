"""Generated images for rehearsals: as many classes as the real data set has, but very few images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from distillery.data.manifest import SPLITS, Ignored
from distillery.data.sources import RawImage, RawImages
from distillery.data.staging import staged_folder
from distillery.data.trees import FolderTree
from distillery.experiment.schema.dataset import Generated
from distillery.randomness import addressed_bits


def generate_images(folder: Path, settings: Generated) -> RawImages:
    """Write ``<folder>/{train,val}/<class>/<number>.jpg`` and list them; most classes have no image.

    Images come in pairs of one class, whose colours distinguish the classes, and classes are spread over the whole
    range. Validation has half as many images, of the first classes of training. An older folder is replaced.

    Raises:
        UserError: the folder cannot be written.
    """
    from PIL import Image

    width = len(str(settings.classes - 1))
    classes = tuple(f"{label:0{width}d}" for label in range(settings.classes))
    counts = {"train": settings.images, "val": max(2, settings.images // 2)}
    with staged_folder(folder) as staging:
        for split in SPLITS:
            for number in range(counts[split]):
                label = _label(number, settings)
                path = staging / split / classes[label] / f"{number:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(_pixels(split, number, label, settings)).save(path, quality=90)
    tree = FolderTree(folder)
    splits = {
        split: [
            RawImage(file, file.path, int(file.path.split("/")[1]))
            for file in sorted(tree.files(split), key=lambda file: file.path)
        ]
        for split in SPLITS
    }
    return RawImages(classes, {split: split for split in SPLITS}, splits, Ignored(hidden=0, extensions={}))


def _label(number: int, settings: Generated) -> int:
    """Both images of pair p are of class p x stride, so that pairs reach from the first class to the last ones."""
    pairs = -(-settings.images // 2)
    stride = max(1, settings.classes // pairs)
    return number // 2 * stride % settings.classes


def _pixels(split: str, number: int, label: int, settings: Generated) -> npt.NDArray[np.uint8]:
    """Noise around a colour of the class's own; wider than high, as photographs are."""
    height, width = settings.size, settings.size * 5 // 4
    colour = addressed_bits(3, label, "generated colour", 0) % np.uint64(128)
    noise = addressed_bits(height * width * 3, number, f"generated {split}", 0) % np.uint64(128)
    return (noise.reshape(height, width, 3) + colour).astype(np.uint8)
