"""Folders and tars are the same tree, and bad ones are refused."""

import io
import os
import tarfile

import pytest

from distillery.data.trees import open_tree, read_raw
from distillery.errors import UserError

FILES = {"train/ape/1.png": b"one", "train/ape/deep/2.png": b"two" * 400, "val/bee/3.png": b"", "read.me": b"text"}


def fill(place):
    for path, content in FILES.items():
        place.write(path, content)
    (place.raw / "train" / "empty").mkdir()


def seen(path, scratch):
    """All that a tree tells."""
    tree = open_tree(path, scratch)
    descriptor = os.open(tree.source, os.O_RDONLY) if tree.source.is_file() else None
    files = {file.path: (file.size, read_raw(tree.source, file, descriptor)) for file in tree.files("")}
    folders = {folder: tree.subfolders(folder) for folder in ("", "train", "train/ape", "val", "val/bee")}
    below = sorted(file.path for file in tree.files("train"))
    return files, folders, below


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.xz", "w:xz")],
)
@pytest.mark.parametrize("top", ["", "./"])
def test_a_tar_is_seen_as_its_folder(place, tmp_path, name, mode, top):
    fill(place)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    expected = seen(place.raw, scratch)
    assert expected[0] == {path: (len(content), content) for path, content in FILES.items()}
    assert expected[1]["train"] == ["ape", "empty"]
    assert expected[2] == ["train/ape/1.png", "train/ape/deep/2.png"]
    assert seen(place.tar(name, mode, top), scratch) == expected


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_every_dialect_are_read(tmp_path, kind):
    name = "/".join(["folder" * 5] * 3 + ["ü" * 20 + ".png"])
    with tarfile.open(tmp_path / "a.tar", "w", format=kind) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    tree = open_tree(tmp_path / "a.tar", tmp_path)
    (file,) = tree.files("")
    with (tmp_path / "a.tar").open("rb") as opened:
        assert (file.path, read_raw(tree.source, file, opened.fileno())) == (name, b"abc")


def test_a_later_member_replaces_an_earlier_one_of_its_name(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("x.png")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    tree = open_tree(tmp_path / "a.tar", tmp_path)
    assert [file.size for file in tree.files("")] == [5]


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../x.png", tarfile.REGTYPE, r"a\.tar: member \.\./x\.png points outside the tar; refused"),
        ("train/../../x.png", tarfile.REGTYPE, "points outside the tar"),
        ("/etc/x.png", tarfile.REGTYPE, r"member /etc/x\.png points outside the tar"),
        ("x.png", tarfile.SYMTYPE, r"member x\.png is a link to target; links in tars are refused"),
        ("x.png", tarfile.LNKTYPE, "is a link to target"),
        ("x.png", tarfile.FIFOTYPE, "is no regular file or folder"),
        ("x.png", tarfile.CHRTYPE, "is no regular file or folder"),
        ("x\n.png", tarfile.SYMTYPE, r"member 'x\\n\.png' is a link"),
    ],
)
def test_members_that_no_data_set_should_have_are_refused_in_one_line(tmp_path, name, kind, message):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "target"
        tar.addfile(info)
    with pytest.raises(UserError, match=message) as caught:
        open_tree(tmp_path / "a.tar", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_text_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("ü.png"))
    with pytest.raises(UserError, match=r"the name '\\udcfc\.png' is not UTF-8 text"):
        open_tree(tmp_path / "a.tar", tmp_path)


def test_a_tar_cut_anywhere_is_refused(place, tmp_path):
    fill(place)
    content = place.tar().read_bytes()
    last = max(file.offset + file.size for file in open_tree(place.folder / "raw.tar", tmp_path).files(""))
    for length in [*range(0, last, 97), *range(512, last, 512), last]:
        (tmp_path / "cut.tar").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.tar: (damaged tar|neither a folder nor a tar)"):
            open_tree(tmp_path / "cut.tar", tmp_path)


@pytest.mark.parametrize(("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz")])
def test_a_compressed_tar_cut_or_damaged_is_refused(place, tmp_path, name, mode):
    fill(place)
    path = place.tar(name, mode)
    content = path.read_bytes()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for broken in (content[: len(content) // 2], content[:40] + b"\xff\x00\xff" + content[43:]):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"a\.tar\...\d?: damaged"):
            open_tree(path, scratch)


def test_other_files_are_no_tars(tmp_path):
    (tmp_path / "raw.zip").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(UserError, match=r"raw\.zip: neither a folder nor a tar; get it anew or unpack it"):
        open_tree(tmp_path / "raw.zip", tmp_path)


def test_links_in_folders_are_followed_but_not_in_circles(place, tmp_path):
    place.write("train/ape/1.png", b"one")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(b"two")
    (place.raw / "train" / "bee").symlink_to(tmp_path / "elsewhere")
    tree = open_tree(place.raw, tmp_path)
    assert sorted(file.path for file in tree.files("")) == ["train/ape/1.png", "train/bee/2.png"]
    (tmp_path / "elsewhere" / "loop").symlink_to(place.raw)
    with pytest.raises(UserError, match="is a link to a folder above it"):
        list(tree.files(""))


def test_a_broken_link_is_named(place, tmp_path):
    place.write("train/ape/1.png", b"one")
    (place.raw / "train" / "ape" / "2.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"train/ape/2\.png is a broken link"):
        list(open_tree(place.raw, tmp_path).files(""))


def test_a_file_that_vanished_or_shrank_is_named(place, tmp_path):
    fill(place)
    tree = open_tree(place.raw, tmp_path)
    file = next(file for file in tree.files("") if file.path == "train/ape/1.png")
    (place.raw / file.path).unlink()
    with pytest.raises(UserError, match=r"train/ape/1\.png cannot be read: No such file"):
        read_raw(tree.source, file, None)
    tree = open_tree(place.tar(), tmp_path)
    file = next(file for file in tree.files("") if file.path == "train/ape/deep/2.png")
    tree.source.write_bytes(tree.source.read_bytes()[: file.offset + 5])
    with tree.source.open("rb") as opened, pytest.raises(UserError, match="the tar ended too early"):
        read_raw(tree.source, file, opened.fileno())
