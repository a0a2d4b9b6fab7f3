"""Files of weights, as far as their first bytes tell: without torch, for what only looks whether they are there."""

from pathlib import Path
from zipfile import BadZipFile, ZipFile

from distillery.errors import UserError


def check_exists(path: Path) -> None:
    """Say which file of weights is missing.

    Raises:
        UserError: there is no such file, or it may not be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is no file' if path.exists() else 'no such file'}; expected a file of weights")
    try:
        path.open("rb").close()
    except OSError as error:  # safetensors would say that there is none
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def check_file(path: Path | None) -> None:
    """See that a file of weights, if one is named, is there and begins like one.

    Raises:
        UserError: it is missing or something else.
    """
    if path is None:
        return
    try:
        check_exists(path)
        kind = safetensors_kind(path) if path.suffix == ".safetensors" else file_kind(path)
    except UserError as error:
        raise UserError(f"weights: {error}") from None
    if kind is not None:
        raise UserError(f"weights: {path}: cannot be read: it is {kind}")


def safetensors_kind(path: Path) -> str | None:
    """What a file that is named .safetensors is by its first bytes; None if it may be one."""
    with path.open("rb") as file:
        if file.read(9)[8:] == b"{":
            return None
    return file_kind(path) or "no safetensors; if torch.save wrote it, name it .pth"


def file_kind(path: Path) -> str | None:
    """What a file is by its first bytes, where torch.save did not write it; None if it may have."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file it points to; fetch that with: git lfs pull"
    if head.lstrip()[:1] == b"<":
        return "a web page; download the file itself"
    if head[8:10] == b'{"':
        return "a file of safetensors; name it .safetensors"
    if head.startswith(b"\x1f\x8b"):
        return "compressed by gzip; unpack it first"
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    if head.startswith(b"\x89HDF"):
        return "a file of HDF5, as Keras writes; convert it to a state_dict of torch"
    if head.startswith(b"PK"):
        return _archive_kind(path)
    if all(byte in b"\t\n\r" or byte >= 32 for byte in head) and not head.startswith(b"\x80"):
        return "text"
    return None


def _archive_kind(path: Path) -> str | None:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError):
        return "a damaged zip archive; get it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "a program of TorchScript; load it with torch.jit.load and save its state_dict() alone"
    return None if any(name.endswith("data.pkl") for name in names) else "a zip archive of other files"
