"""Broken raw data: `distillery prepare` refuses each in one line, quickly, and leaves no data set behind."""

import bz2
import gzip
import io
import os
import socket
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillery.cli import main


def picture(number=0, kind="png", size=(8, 6), **options):
    generator = np.random.Generator(np.random.Philox(key=number))
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def files():
    """A sound data set by path: two classes, two training images and one for validation each."""
    paths = [f"{split}/{name}/{i}.png" for split, n in (("train", 2), ("val", 1)) for name in "ab" for i in range(n)]
    return {path: picture(number) for number, path in enumerate(paths)}


def fill(folder, **changes):
    """Write the sound data set with some files changed, added or (None) left out; ``__`` stands for a slash."""
    content = files() | {path.replace("__", "/"): value for path, value in changes.items()}
    for path, value in content.items():
        if value is not None:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(value)
    return folder


def with_file(path, value):
    return lambda folder: fill(folder, **{path: value})


def without(*paths):
    return lambda folder: fill(folder, **dict.fromkeys(paths))


def tar_of(members, mode="w:"):
    """A tar of (name, content or TarInfo) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else b""))
    return buffer.getvalue()


def special(kind, target=""):
    info = tarfile.TarInfo("train/a/9.png")
    info.type, info.linkname = kind, target
    return info


def archive(content, name="all.tar"):
    def build(folder):
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content() if callable(content) else content)

    return build


def sound_tar(mode="w:"):
    return tar_of(files().items(), mode)


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf()


def sound_zip(**extra):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in (files() | {path.replace("__", "/"): value for path, value in extra.items()}).items():
            packed.writestr(name, content)
    return buffer.getvalue()


def zip_link():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        link = zipfile.ZipInfo("train/a/9.png")
        link.external_attr = 0o120777 << 16
        packed.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def lying_zip():
    content = sound_zip(**{"train__a__big.png": bytes(2**22)})
    return content.replace((2**22).to_bytes(4, "little"), (100).to_bytes(4, "little"))


def truncated(folder, path, size):
    fill(folder)
    os.truncate(folder / path, size)


def a_pipe(folder):
    os.mkfifo(folder)


def a_pipe_inside(folder):
    fill(folder)
    os.mkfifo(folder / "train/a/pipe.png")


def a_socket_inside(folder):
    fill(folder)
    place = Path.cwd()
    os.chdir(folder)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("train/a/s.png")
    os.chdir(place)


def a_broken_link(folder):
    fill(folder)
    (folder / "train/a/9.png").symlink_to("nowhere.png")


def a_loop(folder):
    fill(folder)
    (folder / "train/a/up").symlink_to(folder)


def renamed(folder, old, new):
    fill(folder)
    (folder / old).rename(folder / new)


POSTSCRIPT = (
    b"\xc5\xd0\xd3\xc6"
    + (30).to_bytes(4, "little")
    + (60).to_bytes(4, "little")
    + bytes(18)
    + (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
)
BAD = "train__a__9"

FAULTS = {
    # Images.
    "empty file": (with_file(f"{BAD}.png", b""), "", "train/a/9.png: the file is empty"),
    "web page": (with_file(f"{BAD}.png", b"<html>404</html>"), "", "train/a/9.png: not an image"),
    "pointer of Git LFS": (with_file(f"{BAD}.png", b"version https://git-lfs.github.com/spec/v1\n"),
        "", "not an image"),
    "PostScript": (with_file(f"{BAD}.png", POSTSCRIPT[30:]), "", "train/a/9.png: not an image, or of an unknown kind"),
    "PostScript with a DOS header": (with_file(f"{BAD}.png", POSTSCRIPT), "", "9.png: not an image, or of an unknown"),
    "PDF": (with_file(f"{BAD}.jpg", b"%PDF-1.7\n%%EOF"), "", "9.jpg: not an image"),
    "TGA": (with_file(f"{BAD}.png", picture(9, "tga")), "", "9.png: not an image"),
    "icon": (with_file(f"{BAD}.png", picture(9, "ico", (16, 16))), "", "9.png: not an image"),
    "cut PNG": (with_file(f"{BAD}.png", picture(9)[:-30]), "", "1 of 7 images cannot be decoded: train/a/9.png"),
    "cut JPEG": (with_file(f"{BAD}.jpg", picture(9, "jpeg", (64, 64))[:-200]), "", "train/a/9.jpg"),
    "cut WebP": (with_file(f"{BAD}.webp", picture(9, "webp")[:-20]), "", "train/a/9.webp"),
    "flipped bit": (with_file(f"{BAD}.png", picture(9)[:60] + b"\x00" + picture(9)[61:]), "", "train/a/9.png"),
    "bomb of pixels": (
        with_file(f"{BAD}.png", picture(9).replace((8).to_bytes(4, "big"), (10**5).to_bytes(4, "big"), 1)),
        "", "cannot be decoded: train/a/9.png",
    ),
    "huge file": (lambda folder: truncated(folder, "train/a/0.png", 2**33), "", "the limit for one file is"),
    "all of a class broken": (
        lambda folder: fill(folder, train__a__0__png=None, **{"train__a__0.png": b"x", "train__a__1.png": b"y"}),
        ", on_corrupt: skip", "train/a/: none of its images can be decoded",
    ),
    "HEIC alone": (
        lambda folder: fill(folder, **{"train__a__0.png": None, "train__a__1.png": None, "train__a__0.HEIC": b"x"}),
        "", "train/a/ has 1 photograph of a kind that cannot be read (convert to JPEG or PNG)",
    ),
    # Folders.
    "nothing": (lambda folder: None, "", "no raw images for data set 'images': put train/<class>/*"),
    "empty folder": (lambda folder: folder.mkdir(), "", "no raw images for data set 'images'"),
    "file of text": (lambda folder: folder.write_bytes(b"x" * 2000), "", "neither folder, tar nor zip"),
    "empty file as data": (lambda folder: folder.write_bytes(b""), "", "neither folder, tar nor zip"),
    "pipe as data": (a_pipe, "", "it is neither a folder nor a regular file"),
    "device as data": (lambda folder: folder.symlink_to("/dev/zero"), "", "neither a folder nor a regular file"),
    "dangling link as data": (lambda folder: folder.symlink_to("nowhere"), "", "no raw images"),
    "pipe inside": (a_pipe_inside, "", "train/a/pipe.png is not a regular file; remove it"),
    "socket inside": (a_socket_inside, "", "train/a/s.png is not a regular file"),
    "broken link inside": (a_broken_link, "", "train/a/9.png is a broken link"),
    "link to above": (a_loop, "", "is a link to a folder above it"),
    "flat images": (lambda folder: (folder.mkdir(), (folder / "1.png").write_bytes(picture(1))), "",
                    "1 image in no class folder; put images into train/<class>/"),
    "image beside the classes": (with_file("train__9.png", picture(9)), "", "train/9.png lies in no class folder"),
    "no validation": (without("val__a__0.png", "val__b__0.png"), "", "no folder val/, valid/, validation/ or test/"),
    "no training": (without(*(f"train__{name}__{i}.png" for name in "ab" for i in range(2))), "", "no folder train/"),
    "class without validation": (without("val__b__0.png"), "", "val/b/ is missing"),
    "class without training": (with_file("val__c__0.png", picture(9)), "", "train/c/ is missing"),
    "class with text only": (
        lambda folder: fill(folder, **{"val__b__0.png": None, "val__b__0.txt": b"x"}), "", "val/b/ is empty"),
    "class of another case": (lambda folder: renamed(folder, "val/b", "val/B"), "", "is missing"),
    "class of another Unicode form": (
        lambda folder: fill(folder, **{"train__e\u0301__0.png": picture(8), "val__\u00e9__0.png": picture(9)}),
        "", "differ in Unicode form only; give them one name",
    ),
    "two validation folders": (with_file("valid__a__0.png", picture(9)), "", "say which to use with `val_folder`"),
    "no such validation folder": (fill, ", val_folder: dev", "images.val_folder: no folder 'dev' beside train/"),
    "wrong number of classes": (fill, ", classes: 3", "2 classes, but images.classes in datasets.yaml expects 3"),
    "wrong number of images": (fill, ", images: {train: 5}", "4 images in train/, but images.images.train"),
    "one image of validation": (fill, ", images: {val: 1}", "2 images in val/, but"),
    "class of one with holdout": (without("train__a__1.png"), ", holdout: 0.5", "class 'a' has one training image"),
    "turned and not embedded": (fill, ", orientation: exif, embed: false", "`orientation: exif` stores images anew"),
    "packed and not embedded": (archive(sound_zip), ", embed: false", "lies in no plain file, folder or tar"),
    # Archives.
    "tar cut in a header": (archive(lambda: sound_tar()[:700]), "", "damaged tar"),
    "tar cut in a file": (archive(lambda: sound_tar()[:2200]), "", "damaged tar"),
    "tar without its end": (archive(lambda: sound_tar().rstrip(b"\x00")), "", "damaged tar"),
    "tar of another kind": (archive(b"x" * 4096), "", "neither folder, tar nor zip"),
    "tar that points outside": (archive(lambda: tar_of([("../up.png", b"x")])), "", "points outside the archive"),
    "tar with a root": (archive(lambda: tar_of([("/etc/up.png", b"x")])), "", "points outside the archive"),
    "tar with a link": (archive(lambda: tar_of([("", special(tarfile.SYMTYPE, "/etc/passwd"))])), "", "is a link to"),
    "tar with a hard link": (archive(lambda: tar_of([("", special(tarfile.LNKTYPE, "x"))])), "", "is a link to"),
    "tar with a pipe": (archive(lambda: tar_of([("", special(tarfile.FIFOTYPE))])), "", "no regular file or folder"),
    "tar with a device": (archive(lambda: tar_of([("", special(tarfile.CHRTYPE))])), "", "no regular file or folder"),
    "tar with a sparse file": (
        lambda folder: (archive(header("train/a/1.png", 2**31))(folder), os.truncate(folder / "all.tar", 2**31 + 2048)),
        "", "train/a/1.png has 2,147,483,648 bytes; the limit for one file is",
    ),
    "gz cut": (archive(lambda: sound_tar("w:gz")[:-40], "all.tar.gz"), "", "damaged archive"),
    "gz flipped": (
        archive(lambda: (t := sound_tar("w:gz"))[:-8] + bytes([t[-8] ^ 1]) + t[-7:], "all.tar.gz"),
            "", "damaged archive"),
    "gz of no tar": (archive(lambda: gzip.compress(b"x" * 5000), "all.tar.gz"),
        "", "damaged archive, or one with no tar"),
    "gz of nothing": (archive(lambda: gzip.compress(b""), "all.tar.gz"), "", "all.tar.gz: "),
    "gz that points outside": (archive(lambda: tar_of([("../x", b"")], "w:gz"), "all.tar.gz"),
        "", "outside the archive"),
    "gz with a huge image": (
        archive(lambda: gzip.compress(header("train/a/1.png", 2**40)), "all.tar.gz"), "", "the limit for one file is"),
    "gz with a huge file": (
        archive(lambda: gzip.compress(header("notes", 2**55)), "all.tar.gz"), "", "more than the"),
    "gz that goes on": (
        archive(lambda: gzip.compress(sound_tar() + bytes(2**27)), "all.tar.gz"),
            "", "goes on after the end of its tar"),
    "bz2 cut": (archive(lambda: bz2.compress(sound_tar())[:-20], "all.tar.bz2"), "", "damaged archive"),
    "xz of no xz": (archive(b"\xfd7zXZ\x00" + b"x" * 99, "all.tar.xz"), "", "damaged archive"),
    "zip cut": (archive(lambda: sound_zip()[:-30], "all.zip"), "", "damaged zip"),
    "zip with a flipped bit": (
        archive(lambda: (z := sound_zip())[:80] + bytes([z[80] ^ 255]) + z[81:], "all.zip"), "", "damaged zip"),
    "zip that points outside": (archive(lambda: sound_zip(**{"..__up.png": b"x"}), "all.zip"),
        "", "outside the archive"),
    "zip with a link": (archive(zip_link, "all.zip"), "", "is a link; links in archives are refused"),
    "zip that lies about a size": (archive(lying_zip, "all.zip"), "", "damaged zip: train/a/big.png"),
    "rar": (archive(b"Rar!\x1a\x07\x00" + bytes(600), "all.rar"), "", "no raw images for data set"),
}  # fmt: skip


@pytest.fixture
def config(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config"


def prepare(config, keys=""):
    (config / "datasets.yaml").write_text(f"images: {{path: raw{keys}}}\n")
    return ["prepare", "images", "--workers", "0"]


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_raw_data_are_refused_in_one_line(config, refused, fault):
    build, keys, words = FAULTS[fault]
    build(config.parent / "raw")
    began = time.monotonic()
    line = refused(*prepare(config, keys))
    assert words in line
    assert time.monotonic() - began < 5
    assert not list(config.parent.glob("results/datasets/images"))
    assert not list(config.parent.glob("results/datasets/.*"))


def test_the_data_that_these_break_are_sound(config):
    fill(config.parent / "raw")
    with pytest.raises(SystemExit) as ended:
        main(prepare(config))
    assert ended.value.code == 0
