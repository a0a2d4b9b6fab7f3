"""What the layouts of published data sets share: finding the archive, and reading its lists."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from distillery.data.layouts.folders import has_class_folders
from distillery.data.raw import RawFile, RawReader, shown
from distillery.data.sources import Scan, is_hidden, visible_images
from distillery.data.trees import Tree, open_tree
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset


def open_official(
    dataset: Dataset, scratch: Path, archives: Iterable[str], markers: Iterable[str]
) -> tuple[Tree, str | None]:
    """Open a published data set: unpacked, or one of its archives, which may lie in the folder ``path``.

    Returns:
        The tree, and the folder in it ("" or with a slash) that holds one of the files ``markers``, by which the
        official layout is known. None: there is no such folder, so the images must lie in class folders.

    Raises:
        UserError: an archive cannot be read or is damaged.
    """
    path = Path(dataset.path)
    tree = open_tree(path, scratch)
    root = find_marked_folder(tree, markers)
    if path.is_dir() and root is None and not has_class_folders(tree):
        present = [path / archive for archive in archives if (path / archive).is_file()]
        if present:
            tree = open_tree(present[0], scratch)
            root = find_marked_folder(tree, markers)
    return tree, root


def find_marked_folder(tree: Tree, markers: Iterable[str]) -> str | None:
    """The top, or a folder directly below it, that holds one of the files; "" or the folder with a slash."""
    tops = ["", *(f"{folder}/" for folder in tree.subfolders("") if not is_hidden(folder))]
    wanted = tuple(markers)
    return next((top for top in tops if any(tree.find(top + marker) for marker in wanted)), None)


def need(tree: Tree, path: str) -> RawFile:
    """A file that the layout cannot do without.

    Raises:
        UserError: it is not there.
    """
    file = tree.find(path)
    if file is None:
        raise UserError(f"{tree.source}: {shown(path)} is missing; get the data set again")
    return file


def images_below(tree: Tree, base: str, scan: Scan) -> dict[str, RawFile]:
    """The images below the folder ``base``, by their paths there; other files are counted."""
    return {file.path.removeprefix(f"{base}/"): file for file in visible_images(tree.files(base), base, scan)}


def lines_of(tree: Tree, file: RawFile, reader: RawReader) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not empty, with their numbers from 1.

    Raises:
        UserError: it is not UTF-8 text.
    """
    try:
        text = reader.read(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{tree.source}: {shown(file.path)} is no text; get the data set again") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield number, line


@contextmanager
def named_if_damaged(tree: Tree, path: str) -> Iterator[None]:
    """Name the file in one line when what reads its content fails; readers of damaged files raise anything.

    Raises:
        UserError: as said.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{tree.source}: {shown(path)} cannot be read: {reason}; get it again") from None


def wrong_line(tree: Tree, file: RawFile, number: int, line: str, expected: str) -> UserError:
    """The error for a line of a list that cannot be right."""
    short = line if len(line) <= 80 else f"{line[:77]}..."
    return UserError(f"{tree.source}: {shown(file.path)} line {number}: {short!r} is not valid; {expected}")
