"""Any tree of class folders: ``[<folder>/]{train,val}/<class>/**/<image>``."""

from pathlib import Path

from distillery.data.raw import RawFile, counted, shown
from distillery.data.sources import VALIDATION_NAMES, Layout, Scan, is_hidden, listed, visible_images
from distillery.data.trees import FolderTree, Tree, open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset

_ARCHIVE_ENDINGS = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zip")


def find_folders(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images of a folder or an archive, or of a folder that holds one archive and nothing else; of a data set
    for evaluation, those for validation only.

    Raises:
        UserError: a split is missing, or images lie outside of class folders.
    """
    return find_class_folders(open_raw(dataset, scratch), name, dataset)


def open_raw(dataset: Dataset, scratch: Path) -> Tree:
    """Open a folder or an archive, or a folder that holds one archive and nothing else.

    Raises:
        UserError: it cannot be read or is damaged.
    """
    tree = open_tree(Path(dataset.path), scratch)
    if isinstance(tree, FolderTree):
        visible = [entry for entry in tree.names("") if not is_hidden(entry)]
        if len(visible) == 1 and visible[0].endswith(_ARCHIVE_ENDINGS) and tree.find(visible[0]):
            tree = open_tree(tree.source / visible[0], scratch)
    return tree


def find_class_folders(tree: Tree, name: str, dataset: Dataset) -> Scan:
    """List the images of a class-folder tree, none of an empty one; the validation folder may have any usual name.

    Raises:
        UserError: a split is missing, or images lie outside of class folders.
    """
    if all(map(is_hidden, tree.subfolders(""))):
        scan = Scan({"train": "train", "val": "val"})
        flat = sum(1 for _ in visible_images(tree.files(""), "", scan))
        if flat:
            raise UserError(f"{dataset.path}: {counted(flat, 'image')} in no class folder; {_wanted('train')} and val/")
        return scan
    evaluation = dataset.split == "evaluation"
    root = _find_root(tree, dataset)
    val = _find_validation(tree, root, name, dataset)
    folders = {"val": val} if evaluation else {"train": "train", "val": val}
    scan = Scan(folders)
    for split, folder in folders.items():
        add_class_folders(scan, split, tree, root, folder, dataset.path)
    return scan


def add_class_folders(scan: Scan, split: str, tree: Tree, root: str, folder: str, path: str) -> None:
    """Add the images of one split, which lie in ``<root><folder>/<class>/``.

    Raises:
        UserError: an image lies outside of class folders.
    """
    base = f"{root}{folder}"
    by_class: dict[str, list[RawFile]] = {label: [] for label in tree.subfolders(base) if not is_hidden(label)}
    for file in visible_images(tree.files(base), base, scan):
        inside = file.path.removeprefix(f"{base}/")
        if "/" not in inside:
            raise UserError(f"{path}: {shown(file.path)} lies in no class folder; {_wanted(folder)}")
        by_class[inside.partition("/")[0]].append(file)
    for label, files in by_class.items():
        scan.files[split].setdefault(label, []).extend((file.path.removeprefix(root), file) for file in files)


def has_class_folders(tree: Tree) -> bool:
    """Whether there are folders for training and validation, at the top or in the only folder there."""
    tops = ["", *(f"{folder}/" for folder in _only_folder(tree))]
    return any(
        "train" in (present := tree.subfolders(top.rstrip("/"))) and not set(VALIDATION_NAMES).isdisjoint(present)
        for top in tops
    )


def _only_folder(tree: Tree) -> list[str]:
    top = [folder for folder in tree.subfolders("") if not is_hidden(folder)]
    return top if len(top) == 1 else []


def _find_root(tree: Tree, dataset: Dataset) -> str:
    """Where the splits are: at the top, or in the only folder there; "" or that folder with a slash."""
    top = [folder for folder in tree.subfolders("") if not is_hidden(folder)]
    usual = {dataset.val_folder or "val", *VALIDATION_NAMES} if dataset.split == "evaluation" else {"train"}
    if usual & {*top}:
        return ""
    inside = [f"{top[0]}/{folder}" for folder in tree.subfolders(top[0])] if len(top) == 1 else []
    if {f"{top[0]}/{folder}" for folder in usual} & {*inside}:
        return f"{top[0]}/"
    if dataset.split == "evaluation":
        raise UserError(
            f"{dataset.path}: no folder val/, valid/, validation/ or test/ in it (found {listed(inside or top)}); "
            f"{_wanted('val')}, or write `layout: classes` for class folders, `layout: lists` for val.csv"
        )
    raise UserError(f"{dataset.path}: no folder train/ in it (found {listed(inside or top)}); {_wanted('train')}")


def _find_validation(tree: Tree, root: str, name: str, dataset: Dataset) -> str:
    path, chosen = dataset.path, dataset.val_folder
    present = [folder for folder in tree.subfolders(root.rstrip("/")) if not is_hidden(folder)]
    others = [folder for folder in present if folder != "train"]
    if chosen is not None:
        if chosen not in others:
            raise UserError(
                f"{path}: {name}.val_folder: no folder {chosen!r} beside train/; valid: {listed(others) or 'none'}"
            )
        return chosen
    usual = [folder for folder in VALIDATION_NAMES if folder in others and folder != "test"]
    if len(usual) > 1:
        raise UserError(f"{path}: has {listed(usual)}; say which to use with `val_folder` of {name!r} in datasets.yaml")
    if usual or "test" in others:
        return usual[0] if usual else "test"
    raise UserError(
        f"{path}: no folder val/, valid/, validation/ or test/ beside train/ (found {listed(others) or 'nothing'}); "
        f"{_wanted('val')}, or name the folder with `val_folder` of {name!r} in datasets.yaml"
    )


def _wanted(folder: str) -> str:
    return f"put images into {folder}/<class>/"


LAYOUT = Layout(find_folders, "put train/<class>/* and val/<class>/* there, or a tar or zip of them")
