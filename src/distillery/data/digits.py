"""The embedded data set: scikit-learn's 1,797 scans of handwritten digits as a raw tree of PNG files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from distillery.data.png import encode_png
from distillery.data.staging import staged_folder
from distillery.randomness import addressed_permutation

# Of each class, one image in so many is for validation.
VALIDATION_SHARE = 5


def write_digits(folder: Path) -> None:
    """Write ``<folder>/{train,val}/<class>/<index>.png``, 8 x 8 pixels, greyscale; the same bytes on every machine.

    The index is the scan's number in scikit-learn's table. The split is stratified and fixed: a fifth of each class,
    drawn by an addressed permutation, is for validation (1,438 and 359 images). An existing folder is left as it is.

    Raises:
        UserError: the folder cannot be written.
    """
    if folder.exists():
        return
    from sklearn.datasets import load_digits

    scans = load_digits()
    pixels = np.rint(scans.images * (255 / 16)).astype(np.uint8)
    labels = scans.target.astype(np.int64)
    validation = _validation_indices(labels)
    with staged_folder(folder) as staging:
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            split = "val" if index in validation else "train"
            path = staging / split / str(label) / f"{index:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(image))


def _validation_indices(labels: npt.NDArray[np.int64]) -> set[int]:
    chosen: set[int] = set()
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        shuffled = members[addressed_permutation(len(members), 0, "digits", int(label))]
        chosen.update(shuffled[: round(len(members) / VALIDATION_SHARE)].tolist())
    return chosen
