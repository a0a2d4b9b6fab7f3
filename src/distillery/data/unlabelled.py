"""Images without labels beside those of a data set: a folder, an archive, or a list of files."""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from distillery.data.raw import RawFile, shown
from distillery.data.sources import RawImage, RawImages, Scan, visible_images
from distillery.data.trees import open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset
from distillery.paths import regular

SPLIT = "unlabelled"
LISTS = (".txt", ".csv")


def add_unlabelled(images: RawImages, dataset: Dataset, scratch: Path) -> RawImages:
    """Add the images that ``unlabelled`` names as a split of their own, in the order of their paths.

    Raises:
        UserError: they are not there, or none is an image.
    """
    assert dataset.unlabelled is not None
    path = Path(dataset.unlabelled)
    beside = Path(dataset.path) / path
    if not dataset.path.startswith(HUB_PREFIX) and beside.exists():
        path = beside
    if not path.exists():
        raise UserError(
            f"{dataset.path}: unlabelled: no folder, archive or list {dataset.unlabelled!r} in it, nor {path} itself"
        )
    scan = Scan({SPLIT: SPLIT})
    if path.suffix in LISTS and path.is_file():
        found = _listed(path)
    else:
        tree = open_tree(path, scratch)
        found = {file.path: file for file in visible_images(tree.files(""), "", scan)}
    if not found:
        raise UserError(f"{path}: no images in it; `unlabelled` of datasets.yaml names them")
    # Their label is nowhere read: it stands for none.
    added = [RawImage(file, f"{SPLIT}/{name}", 0) for name, file in sorted(found.items())]
    splits, folders = images.splits | {SPLIT: added}, images.folders | {SPLIT: SPLIT}
    return replace(images, splits=splits, folders=folders)


def _listed(path: Path) -> dict[str, RawFile]:
    """The files that a list names, a path a line, from the list's folder; without a header ``path``."""
    found: dict[str, RawFile] = {}
    try:
        lines = regular(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or (number == 1 and name == "path"):
            continue
        file = path.parent / name
        if not file.is_file() or name in found:
            raise UserError(f"{path}:{number}: {shown(name)}: no such image, or it was listed before")
        found[name] = RawFile(str(PurePosixPath(name)), file.stat().st_size, path.parent)
    return found
