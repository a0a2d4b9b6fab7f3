"""Bring raw images to where datasets.yaml says they lie: write the embedded ones, or download an official archive."""

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from distillery.data.digits import write_digits
from distillery.data.download import check_checksum, download
from distillery.data.layouts import missing_images
from distillery.data.sources import is_hidden
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset


def fetch_raw(name: str, dataset: Dataset) -> None:
    """Make sure that there are raw images at ``path``; what lies there already is left as it is.

    An official archive that lies there is compared with its checksum; only an absent or empty folder is filled. Data
    sets of the hub are left to their library.

    Raises:
        UserError: there are none and none can be fetched, or an archive is not the official one.
    """
    if dataset.path.startswith(HUB_PREFIX):
        return
    path = Path(dataset.path)
    if dataset.bundled == "digits":
        write_digits(path)
    if dataset.download is not None and not path.is_file():
        archive = path / archive_name(dataset.download.url)
        if archive.is_file():
            check_checksum(archive, dataset.download.checksum)
        elif not _has_content(path):
            download(name, dataset.download.url, archive, dataset.download.checksum, dataset.download.size)
    if not path.exists():
        raise missing_images(name, dataset)


def download_raw(name: str, dataset: Dataset) -> None:
    """Fetch what preparing would fetch, and no more: for machines whose jobs have no network.

    Raises:
        UserError: see ``fetch_raw``.
    """
    if dataset.path.startswith(HUB_PREFIX):
        from distillery.data.hub import load_hub

        load_hub(name, dataset)
    fetch_raw(name, dataset)


def archive_name(url: str) -> str:
    """The name of the file at an address."""
    return PurePosixPath(unquote(urlsplit(url).path)).name


def _has_content(path: Path) -> bool:
    return path.is_dir() and any(not is_hidden(entry.name) for entry in path.iterdir())
