"""How fast images are prepared, beside what decoding them takes at the least, and copies of files, in one run.

    python benchmarks/preparing.py [--images 960] [--rounds 3]

500 x 400 JPEGs. Preparing checks, counts and hashes every image and writes it into shards. The limit decodes each with
libjpeg-turbo and takes its SHA-256, in this process, as preparing with one process does. Every round goes through all
ways in turn; ratios are medians: of processors' time, and of the clock where processes share the work.
"""

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import rows
import torch
from images import prepare, write_photographs
from rows import Row, beside
from simplejpeg import decode_jpeg

ONE, TWO, LIMIT = "one process", "two processes", "decode and SHA-256"


def decode_all(raw: Path) -> None:
    """The least that looks at every image."""
    for path in raw.rglob("*.jpg"):
        encoded = path.read_bytes()
        decode_jpeg(encoded)
        hashlib.sha256(encoded).digest()


def hugging_face(raw: Path, cache: Path) -> None:
    """The builder of Hugging Face's datasets, which looks at no image."""
    import datasets

    datasets.disable_progress_bars()
    datasets.load_dataset("imagefolder", data_dir=str(raw), cache_dir=str(cache))


def compare(folder: Path, images: int, rounds: int) -> list[Row]:
    """Print the table, and return what is compared."""
    raw, tar = folder / "raw", folder / "raw.tar"
    write_photographs(raw, images)
    with tarfile.open(tar, "w") as file:
        for split in ("train", "val"):
            file.add(raw / split, split)
    copy, unpacked = folder / "copy", folder / "unpacked"
    made = copy, unpacked, folder / "cache", folder / "a", folder / "b"
    ways: dict[str, Callable[[], object]] = {
        ONE: lambda: prepare(raw, folder / "a", 1),
        TWO: lambda: prepare(raw, folder / "a", 2),
        "two processes, from the tar": lambda: prepare(tar, folder / "b", 2),
        LIMIT: lambda: decode_all(raw),
        "datasets, imagefolder": lambda: hugging_face(raw, folder / "cache"),
        "cp -r": lambda: subprocess.run(["cp", "-r", raw, copy], check=True),
        "tar xf": lambda: subprocess.run(["tar", "xf", tar, "-C", unpacked], check=True),
    }

    def tidy() -> None:
        for old in made:
            shutil.rmtree(old, ignore_errors=True)
        unpacked.mkdir()
        os.sync()

    clock, spent = rows.both_clocks(ways, rounds, tidy)
    rows.show(f"{images} JPEGs of 500 x 400", clock, spent, images)
    return [
        beside("prepare", f"500 x 400, {ONE}", spent, ONE, LIMIT, 0.77, "CPU ms", images),
        beside("prepare", f"500 x 400, {ONE}", spent, ONE, "datasets, imagefolder", None, "CPU ms", images),
        beside("prepare", f"500 x 400, {TWO}", clock, TWO, ONE, 1.0, "images/s", images),
    ]


def main() -> None:
    """Print the table."""
    parser = rows.parser(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=960, help="[%(default)s]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows.write(compare(Path(folder), options.images, options.rounds), options.rows)


if __name__ == "__main__":
    main()
