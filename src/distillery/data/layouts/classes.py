"""One folder for each class, and no split: all for evaluation, or a share of each class held out for it."""

from pathlib import Path

from distillery.data.layouts.folders import add_class_folders, find_class_folders, has_class_folders, open_raw
from distillery.data.sources import Layout, Scan, is_hidden
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset


def find_classes(name: str, dataset: Dataset, scratch: Path) -> Scan:
    """List the images of ``<class>/*``, at the top or in the only folder there.

    They are for validation where the data set is for evaluation, and else for training; ``holdout`` says how many of
    these become the validation images. With ``train/`` and ``val/`` there, these are the split.

    Raises:
        UserError: images lie outside of class folders, or nothing says which are for validation.
    """
    tree = open_raw(dataset, scratch)
    if has_class_folders(tree) or all(map(is_hidden, tree.subfolders(""))):
        return find_class_folders(tree, name, dataset)
    if dataset.split is None and dataset.holdout is None:
        raise UserError(
            f"{dataset.path}: has no split; write `holdout: 0.2` of {name!r} in datasets.yaml, to validate by that "
            "share of each class, or `split: evaluation`"
        )
    top = [folder for folder in tree.subfolders("") if not is_hidden(folder)]
    inside = tree.subfolders(top[0]) if len(top) == 1 else []
    folder = top[0] if any(not is_hidden(name) for name in inside) else ""
    split = "val" if dataset.split == "evaluation" else "train"
    scan = Scan({split: folder or "."})
    add_class_folders(scan, split, tree, "", folder, dataset.path)
    return scan


LAYOUT = Layout(find_classes, "put <class>/* there, or a tar or zip of them")
