"""The images of a data set as its layout has found them: splits, classes, and the order of sample ids."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from PIL import features

from distillery.data.manifest import SPLITS, Ignored
from distillery.data.raw import AnyFile, RawFile, check_file_size, counted, shown
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

# What torchvision's ImageFolder takes for images, GIF and AVIF. The content decides how a file is decoded.
IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
    | ({".avif"} if features.check("avif") else set())
)
# Photographs that Pillow does not read: they are passed over like other files, but not without a word.
PHOTOGRAPHS = frozenset(
    {".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
# Folders that macOS adds to archives; like hidden names, they are no part of a data set.
_HIDDEN_NAMES = frozenset({"__MACOSX"})
# Usual names of the split for validation, the likeliest first.
VALIDATION_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image file and the number of its class; `path` is what the data set calls it."""

    file: AnyFile
    path: str
    label: int


@dataclass(frozen=True)
class RawImages:
    """All images of a data set, by split; within a split ordered by class, then by path: the order of sample ids."""

    classes: tuple[str, ...]
    folders: dict[str, str]
    splits: dict[str, list[RawImage]]
    ignored: Ignored


@dataclass
class Scan:
    """What a layout finds: of each split its folder's name and, by class, each file and what the data set calls it.

    ``classes`` is their order where the data set has one of its own; otherwise they are sorted by name.
    """

    folders: dict[str, str]
    files: dict[str, dict[str, list[tuple[str, AnyFile]]]] = field(default_factory=lambda: {s: {} for s in SPLITS})
    ignored: Counter[str] = field(default_factory=Counter)
    photographs: Counter[str] = field(default_factory=Counter)  # among these, by folder
    classes: tuple[str, ...] | None = None

    def add(self, split: str, label: str, path: str, file: AnyFile) -> None:
        """Count an image to a class."""
        self.files[split].setdefault(label, []).append((path, file))


@dataclass(frozen=True)
class Layout:
    """One way in which data sets lie on disks: a file of ``data/layouts/``, which has its name.

    ``find`` lists the images of a data set by its name, its line of datasets.yaml and a folder for what it unpacks; it
    raises a UserError where they contradict the layout. ``by_hand`` says what to do when there are no images.
    """

    find: Callable[[str, Dataset, Path], Scan]
    by_hand: str


def to_splits(scan: Scan, path: str) -> RawImages:
    """Check that every class has images in the splits that there are, and put the images in order.

    Of a data set for evaluation, a class of its own list may have none.

    Raises:
        UserError: a class is missing or empty in a split.
    """
    present = [split for split in SPLITS if split in scan.folders]
    filled = {split: {label for label, files in scan.files[split].items() if files} for split in present}
    wanted = set(scan.classes or ()) | set(scan.files["train"]) | set(scan.files["val"])
    _check_forms(sorted(wanted), path)
    for split in present:
        lacking = sorted(wanted - filled[split] if "train" in present else {*scan.files["val"]} - filled["val"])
        if lacking:
            where = f"{scan.folders[split]}/{shown(lacking[0])}/"
            state = "is empty" if lacking[0] in scan.files[split] else "is missing"
            unread = sum(n for folder, n in scan.photographs.items() if f"/{where}" in f"/{folder}/")
            if unread:
                state = f"has {counted(unread, 'photograph')} of a kind that cannot be read (convert to JPEG or PNG)"
            more = f" (and {len(lacking) - 1:,} more such classes)" if len(lacking) > 1 else ""
            raise UserError(
                f"{path}: {where} {state}{more}; every class needs images in "
                f"{' and '.join(f'{scan.folders[each]}/' for each in present)}"
            )
    classes = scan.classes or tuple(sorted(wanted))
    splits = {
        split: [
            RawImage(file, name, label)
            for label, class_name in enumerate(classes)
            for name, file in sorted(scan.files[split].get(class_name, []), key=lambda pair: pair[0])
        ]
        for split in present
    }
    ignored = Ignored(
        hidden=scan.ignored.pop("hidden", 0),
        extensions=dict(sorted(scan.ignored.items())),
        photographs={folder: number for folder, number in sorted(scan.photographs.items()) if number},
    )
    return RawImages(classes, scan.folders, splits, ignored)


def _check_forms(classes: list[str], path: str) -> None:
    """The same letters can be written in several ways, as a Mac and a Linux machine do: one class would be two."""
    first: dict[str, str] = {}
    for label in classes:
        form = unicodedata.normalize("NFC", label)
        other = first.setdefault(form, label)
        if other != label:
            raise UserError(
                f"{path}: the class folders {other!a} and {label!a} are both read {form} and differ in Unicode form "
                "only; give them one name"
            )


def check_counts(images: RawImages, name: str, dataset: Dataset) -> None:
    """Compare the numbers of classes and images with those that datasets.yaml expects.

    Raises:
        UserError: they differ.
    """
    if dataset.classes not in (None, len(images.classes)):
        raise UserError(
            f"{dataset.path}: {counted(len(images.classes), 'class', 'classes')}, but {name}.classes in datasets.yaml "
            f"expects {dataset.classes:,}; complete the raw images, or change or remove the key"
        )
    for split, expected in dataset.images.items():
        if split not in images.splits:
            raise UserError(
                f"{dataset.path}: {name}.images.{split} in datasets.yaml: there is no such split; remove it"
            )
        if len(images.splits[split]) != expected:
            raise UserError(
                f"{dataset.path}: {counted(len(images.splits[split]), 'image')} in {images.folders[split]}/, but "
                f"{name}.images.{split} in datasets.yaml expects {expected:,}; complete the raw images, or change or "
                "remove the key"
            )


def visible_images(files: Iterable[RawFile], base: str, scan: Scan) -> Iterator[RawFile]:
    """The images below the folder ``base``: those whose extension is an image's; all others are counted.

    Hidden are those with a name on their path that begins with a dot or is ``__MACOSX``.

    Raises:
        UserError: an image has more bytes than any image.
    """
    for file in files:
        inside = PurePosixPath(file.path.removeprefix(f"{base}/"))
        extension = inside.suffix.lower()
        if any(map(is_hidden, inside.parts)):
            scan.ignored["hidden"] += 1
        elif extension not in IMAGE_EXTENSIONS:
            scan.ignored[extension] += 1
            scan.photographs[str(PurePosixPath(file.path).parent)] += extension in PHOTOGRAPHS
        else:
            check_file_size(file.path, file.size, file.source)
            yield file


def is_hidden(name: str) -> bool:
    """Whether a name is none of the data set's."""
    return name.startswith(".") or name in _HIDDEN_NAMES


def listed(names: list[str]) -> str:
    """The first few names, as they may stand in a one-line message."""
    text = ", ".join(shown(name) for name in names[:5])
    return f"{text}, ... ({len(names)} in all)" if len(names) > 5 else text
