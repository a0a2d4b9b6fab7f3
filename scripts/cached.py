"""Whether the files that DVC records are whole: it believes what a remote sends, and its own cache."""

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Recorded:
    """A file that a record tells of, and its copy in the cache."""

    path: Path
    md5: str
    cache: Path

    @property
    def object(self) -> str:
        """Where cache and remote keep its bytes, below their roots."""
        return object_name(self.md5)

    def is_whole(self) -> bool:
        """Whether the file itself holds the recorded bytes."""
        return self.path.is_file() and md5_of(self.path) == self.md5


def discard_damaged(record: Path, *, keep_files: bool = False) -> Iterator[Recorded]:
    """Find the files of a dvc.lock or .dvc file whose copy in the cache is damaged, and delete that copy.

    The file in the workspace is deleted too if it has the same wrong bytes, unless ``keep_files``.
    """
    cache = Path(subprocess.run(["dvc", "cache", "dir"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    for each in recorded_files(record, cache):
        copy = cache / each.object
        if copy.is_file() and (wrong := md5_of(copy)) != each.md5:
            if not keep_files and each.path.is_file() and md5_of(each.path) == wrong:
                each.path.unlink()
            copy.unlink()
            yield each


def recorded_files(record: Path, cache: Path) -> Iterator[Recorded]:
    """The files that a dvc.lock or .dvc file tells of and the cache keeps; of folders, what is in them."""
    for path, md5 in recorded_outputs(record):
        yield Recorded(path, md5, cache)
        listing = cache / object_name(md5)
        if md5.endswith(".dir") and listing.is_file():
            try:
                entries = json.loads(listing.read_text(encoding="utf-8"))
            except ValueError:
                continue  # damaged: it has been reported
            for entry in entries:
                yield Recorded(path / entry["relpath"], entry["md5"], cache)


def recorded_outputs(record: Path) -> Iterator[tuple[Path, str]]:
    """Paths from the root and hashes of the outputs that a dvc.lock or the root's .dvc file tells of."""
    if not record.is_file():
        return
    content: dict[str, Any] = yaml.safe_load(record.read_text(encoding="utf-8"))
    blocks = list(content["stages"].values()) if "stages" in content else [content]
    for block in blocks:
        for out in block.get("outs", []):
            yield Path(out["path"]), out["md5"]


def object_name(md5: str) -> str:
    """Where DVC keeps an object, below the root of a cache or a remote."""
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def md5_of(path: Path) -> str:
    """The hash of a file as DVC records it; of the list of a folder, with its ending."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    return f"{digest}.dir" if path.name.endswith(".dir") else digest
