"""Find the images of a data set in a tree of files: splits, classes, and which files are images."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from distillery.config.schema.dataset import Dataset
from distillery.data.manifest import SPLITS, Ignored
from distillery.data.trees import RawFile, Tree, shown
from distillery.errors import UserError

# What torchvision's ImageFolder takes for images, and GIF. The content decides how a file is decoded.
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"})
# Folders that macOS adds to archives; like hidden names, they are no part of a data set.
_HIDDEN_NAMES = frozenset({"__MACOSX"})
_VALIDATION_NAMES = ("val", "valid", "validation")


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image file and the number of its class; `path` is what the data set calls it."""

    file: RawFile
    path: str
    label: int


@dataclass(frozen=True)
class RawImages:
    """All images of a data set, by split; within a split ordered by class, then by path: the order of sample ids."""

    source: Path
    classes: tuple[str, ...]
    folders: dict[str, str]
    splits: dict[str, list[RawImage]]
    ignored: Ignored


def missing_message(path: Path, name: str) -> str:
    """What to do when a data set's raw images are not there."""
    return (
        f"{path}: no raw images for data set {name!r}: put train/<class>/* and val/<class>/* there, or a tar of them, "
        "or change datasets.yaml"
    )


def find_images(tree: Tree, name: str, dataset: Dataset) -> RawImages:
    """List the images of a class-folder tree: ``[<folder>/]{train,val}/<class>/**/<image>``.

    Files are images by their extension (``IMAGE_EXTENSIONS``, in any case); other files, and hidden ones (a name on
    their path begins with a dot, or is ``__MACOSX``), are counted and passed over.

    Raises:
        UserError: a split or class is missing or empty, or images lie outside of class folders.
    """
    path = Path(dataset.path)
    root = _find_root(tree, path, name)
    folders = {"train": "train", "val": _find_validation(tree, root, path, name, dataset.val_folder)}
    ignored: Counter[str] = Counter()
    found: dict[str, dict[str, list[RawFile]]] = {}
    for split in SPLITS:
        base = f"{root}{folders[split]}"
        by_class: dict[str, list[RawFile]] = {folder: [] for folder in tree.subfolders(base) if not _is_hidden(folder)}
        for file in _visible_images(tree.files(base), base, ignored):
            inside = file.path.removeprefix(f"{base}/")
            if "/" not in inside:
                raise UserError(f"{path}: {shown(file.path)} lies in no class folder; {_wanted(folders[split])}")
            by_class[inside.partition("/")[0]].append(file)
        found[split] = by_class
    classes = _check_classes(found, folders, path, name)
    splits = {
        split: [
            RawImage(file, file.path.removeprefix(root), label)
            for label, class_name in enumerate(classes)
            for file in sorted(found[split][class_name], key=lambda file: file.path)
        ]
        for split in SPLITS
    }
    hidden = ignored.pop("hidden", 0)
    return RawImages(
        tree.source, classes, folders, splits, Ignored(hidden=hidden, extensions=dict(sorted(ignored.items())))
    )


def _find_root(tree: Tree, path: Path, name: str) -> str:
    """Where `train` is: at the top, or in the only folder there; "" or that folder with a slash."""
    top = [folder for folder in tree.subfolders("") if not _is_hidden(folder)]
    if "train" in top:
        return ""
    if len(top) == 1 and "train" in tree.subfolders(top[0]):
        return f"{top[0]}/"
    if not top:
        raise UserError(missing_message(path, name))
    inside = [f"{top[0]}/{folder}" for folder in tree.subfolders(top[0])] if len(top) == 1 else []
    raise UserError(f"{path}: no folder train/ in it (found {_listed(inside or top)}); {_wanted('train')}")


def _find_validation(tree: Tree, root: str, path: Path, name: str, chosen: str | None) -> str:
    present = [folder for folder in tree.subfolders(root.rstrip("/")) if not _is_hidden(folder)]
    others = [folder for folder in present if folder != "train"]
    if chosen is not None:
        if chosen not in others:
            raise UserError(
                f"{path}: {name}.val_folder: no folder {chosen!r} beside train/; valid: {_listed(others) or 'none'}"
            )
        return chosen
    usual = [folder for folder in _VALIDATION_NAMES if folder in others]
    if len(usual) > 1:
        raise UserError(
            f"{path}: has {_listed(usual)}; say which to use with `val_folder` of {name!r} in datasets.yaml"
        )
    if usual or "test" in others:
        return usual[0] if usual else "test"
    raise UserError(
        f"{path}: no folder val/, valid/, validation/ or test/ beside train/ (found {_listed(others) or 'nothing'}); "
        f"{_wanted('val')}, or name the folder with `val_folder` of {name!r} in datasets.yaml"
    )


def _visible_images(files: Iterable[RawFile], base: str, ignored: Counter[str]) -> Iterable[RawFile]:
    for file in files:
        inside = PurePosixPath(file.path.removeprefix(f"{base}/"))
        extension = inside.suffix.lower()
        if any(map(_is_hidden, inside.parts)):
            ignored["hidden"] += 1
        elif extension not in IMAGE_EXTENSIONS:
            ignored[extension] += 1
        else:
            yield file


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _HIDDEN_NAMES


def _check_classes(
    found: dict[str, dict[str, list[RawFile]]], folders: dict[str, str], path: Path, name: str
) -> tuple[str, ...]:
    """Every class must have images in both splits; return their names, sorted."""
    filled = {split: {label for label, files in found[split].items() if files} for split in SPLITS}
    if not any(filled.values()):
        raise UserError(missing_message(path, name))
    for split, other in (SPLITS, SPLITS[::-1]):
        lacking = sorted((set(found[split]) | set(found[other])) - filled[split])
        if lacking:
            where = f"{folders[split]}/{shown(lacking[0])}/"
            state = "is empty" if lacking[0] in found[split] else "is missing"
            more = f" (and {len(lacking) - 1} more such classes)" if len(lacking) > 1 else ""
            raise UserError(
                f"{path}: {where} {state}{more}; every class needs images in {folders['train']}/ and {folders['val']}/"
            )
    return tuple(sorted(filled["train"]))


def _wanted(folder: str) -> str:
    return f"put images into {folder}/<class>/"


def _listed(names: list[str]) -> str:
    listed = ", ".join(shown(name) for name in names[:5])
    return f"{listed}, ... ({len(names)} in all)" if len(names) > 5 else listed
