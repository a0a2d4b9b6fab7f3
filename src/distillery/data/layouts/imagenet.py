"""ImageNet (ILSVRC 2012) as it is published: a tar of tars, a flat tar of validation images, and a development kit.

Each split may also be unpacked, wholly or in part, as people have it on their disks: class folders, class tars in a
folder, flat validation images, and the layout of the challenge's later archive (``ILSVRC/Data/CLS-LOC``).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from distillery.data.layouts._imagenet_labels import VALIDATION_STEM, validation_labels
from distillery.data.layouts.folders import add_class_folders, find_class_folders
from distillery.data.raw import RawFile, shown
from distillery.data.sources import VALIDATION_NAMES, Layout, Scan, is_hidden, visible_images
from distillery.data.trees import FolderTree, Tree, open_nested_tar, open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

_TRAIN_TAR, _VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
_LATER_ROOT = "ILSVRC/Data/CLS-LOC"


@dataclass(frozen=True)
class _Part:
    """Where a split lies: a folder of a tree ("" for its top)."""

    tree: Tree
    folder: str


def find_imagenet(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images; they become ``train/<wnid>/<file>`` and ``val/<wnid>/<file>``, and classes are sorted by wnid.

    That is the order that published weights know. The development kit numbers the classes otherwise: its own list
    translates the labels of the validation images.

    Raises:
        UserError: a split is missing, a tar is damaged, or the labels do not fit the images.
    """
    tree = open_tree(Path(dataset.path), scratch)
    if not isinstance(tree, FolderTree):
        return find_class_folders(tree, name, dataset)
    train = _find_training(tree, scratch)
    val = _find_validation(tree, scratch, dataset.val_folder)
    if train is None and val is None:
        return find_class_folders(tree, name, dataset)
    if train is None:
        raise UserError(f"{dataset.path}: no training images beside the others; put {_TRAIN_TAR} or train/ there")
    if val is None:
        folder = dataset.val_folder or "val"
        raise UserError(f"{dataset.path}: no validation images beside the others; put {_VAL_TAR} or {folder}/ there")
    scan = Scan({"train": "train", "val": "val"})
    _add_training(scan, train)
    _add_validation(scan, val, tree, scratch)
    return scan


def _find_training(tree: Tree, scratch: Path) -> _Part | None:
    for root in ("", f"{_LATER_ROOT}/"):
        if "train" in tree.subfolders(root.rstrip("/")):
            return _Part(tree, f"{root}train")
    return _open_part(tree, _TRAIN_TAR, scratch)


def _find_validation(tree: Tree, scratch: Path, chosen: str | None) -> _Part | None:
    for root in ("", f"{_LATER_ROOT}/"):
        present = tree.subfolders(root.rstrip("/"))
        for folder in [chosen] if chosen else [name for name in VALIDATION_NAMES if name != "test"]:
            if folder in present:
                return _Part(tree, f"{root}{folder}")
    return _open_part(tree, _VAL_TAR, scratch)


def _open_part(tree: Tree, archive: str, scratch: Path) -> _Part | None:
    return _Part(open_tree(tree.source / archive, scratch), "") if tree.find(archive) else None


def _add_training(scan: Scan, part: _Part) -> None:
    tars = [file for file in _directly_in(part) if file.path.endswith(".tar")]
    if not tars:
        add_class_folders(scan, "train", part.tree, _above(part), _name(part), str(part.tree.source))
        return
    for tar in sorted(tars, key=lambda file: file.path):
        wnid = PurePosixPath(tar.path).stem
        inner = open_nested_tar(tar, part.tree)
        scan.files["train"].setdefault(wnid, [])
        for file in visible_images(inner.files(""), "", scan):
            scan.add("train", wnid, f"train/{wnid}/{file.path}", file)


def _add_validation(scan: Scan, part: _Part, top: Tree, scratch: Path) -> None:
    flat = [file for file in _directly_in(part) if file.path.endswith(".JPEG")]
    if not flat:
        where = part.tree.source / part.folder
        if not [folder for folder in part.tree.subfolders(part.folder) if not is_hidden(folder)]:
            raise UserError(f"{where}: holds neither images {VALIDATION_STEM}<number>.JPEG nor class folders")
        scan.folders["val"] = _name(part)
        add_class_folders(scan, "val", part.tree, _above(part), _name(part), str(part.tree.source))
        return
    labels, listing = validation_labels(top, scratch)
    where = part.tree.source / part.folder
    for file in visible_images(flat, part.folder, scan):
        stem = PurePosixPath(file.path).stem
        if stem not in labels:
            raise UserError(f"{where}: {shown(file.path)} has no label in {listing}")
        wnid = labels.pop(stem)
        if wnid not in scan.files["train"]:
            raise UserError(f"{listing}: {stem} has class {shown(wnid)}, which has no training images")
        scan.add("val", wnid, f"val/{wnid}/{PurePosixPath(file.path).name}", file)
    if labels:
        raise UserError(
            f"{where}: lacks {min(labels)}.JPEG, which has a label in {listing} ({len(labels):,} such images)"
        )


def _directly_in(part: _Part) -> list[RawFile]:
    """The visible files of a folder that lie in no folder below it."""
    prefix = f"{part.folder}/" if part.folder else ""
    if isinstance(part.tree, FolderTree):
        # A walk through all class folders would look at a million files for nothing.
        names = part.tree.names(part.folder)
        files = [part.tree.find(prefix + name) for name in names if not is_hidden(name)]
        return [file for file in files if file is not None]
    inside = ((file, file.path.removeprefix(prefix)) for file in part.tree.files(part.folder))
    return [file for file, path in inside if "/" not in path and not is_hidden(path)]


def _above(part: _Part) -> str:
    return part.folder.removesuffix(_name(part))


def _name(part: _Part) -> str:
    return PurePosixPath(part.folder).name


LAYOUT = Layout(
    find_imagenet,
    "put ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz there (from image-net.org, "
    "with an account), or train/<class>/* and val/<class>/*",
)
