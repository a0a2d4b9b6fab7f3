"""The one kind of error that is the user's to mend."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input from outside: one line that names the file, the key or row, the value, and what would be right.

    The command line prints that line and exits with code 2; no traceback reaches the user.
    """

    def __init__(self, line: str) -> None:
        # A loader's worker process passes its error on with its traceback written before the line.
        super().__init__(line.rstrip("\n").rpartition("\ndistillery.errors.UserError: ")[2])


@contextmanager
def keyed(key: str) -> Iterator[None]:
    """Put a key before errors that say only what is wrong with its value."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put where a key stands, as ``config/digits.yaml: digits.runs.resnet8``, before errors that begin with the key."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def machine_at_fault(error: RuntimeError) -> str | None:
    """Say what to do where memory or files ran out, or a process that reads images ended; None for other errors."""
    sentences = str(error).strip().split(". ")
    # By its name, for light commands do without torch.
    if type(error).__name__ == "OutOfMemoryError":
        said = ". ".join(sentences[:3])
        return f"{said}; give `train` a --device-batch (or a smaller one), or free the GPU: see nvidia-smi"
    if str(error).startswith("DataLoader worker"):
        reason = sentences[0].splitlines()[0].rstrip(".")
        return (
            f"a process that reads images has ended ({reason}): memory or /dev/shm was full, or somebody ended it; use "
            "fewer --workers, more memory, or a larger --shm-size of the container; the same command continues from "
            "what is saved"
        )
    if sentences[0] == "Too many open files":
        return "too many open files; raise their limit (ulimit -n), or use fewer --workers"
    return None


def printable(text: str) -> str:
    """Text for a terminal: names of files and keys may hold what moves its cursor, or does more; it is spelt out."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)
