"""Folders and tars are the same tree, and bad ones are refused."""

import gzip
import io
import itertools
import os
import tarfile
import tracemalloc
import zipfile

import pytest

from distillery.data.raw import RawReader
from distillery.data.sources import Scan, visible_images
from distillery.data.trees import open_nested_tar, open_tree
from distillery.errors import UserError

FILES = {"train/ape/1.png": b"one", "train/ape/deep/2.png": b"two" * 400, "val/bee/3.png": b"", "read.me": b"text"}


def fill(place):
    for path, content in FILES.items():
        place.write(path, content)
    (place.raw / "train" / "empty").mkdir()


def seen(path, scratch):
    """All that a tree shows."""
    tree = open_tree(path, scratch)
    with RawReader() as reader:
        files = {file.path: (file.size, reader.read(file)) for file in tree.files("")}
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
    with RawReader() as reader:
        assert (file.path, reader.read(file)) == (name, b"abc")


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
        ("../x.png", tarfile.REGTYPE, r"a\.tar: member \.\./x\.png points outside the archive; refused"),
        ("train/../../x.png", tarfile.REGTYPE, "points outside the archive"),
        ("/etc/x.png", tarfile.REGTYPE, r"member /etc/x\.png points outside the archive"),
        ("x.png", tarfile.SYMTYPE, r"member x\.png is a link to target; links in archives are refused"),
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
        with pytest.raises(UserError, match=r"cut\.tar: (damaged tar|neither folder, tar nor zip)"):
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
    (tmp_path / "raw.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(1000))
    with pytest.raises(UserError, match=r"raw\.7z: neither folder, tar nor zip; get it again or unpack it"):
        open_tree(tmp_path / "raw.7z", tmp_path)


@pytest.fixture
def zipped(place):
    fill(place)
    path = place.folder / "raw.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, file in enumerate(sorted(place.raw.rglob("*"))):
            kind = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
            archive.write(file, file.relative_to(place.raw), compress_type=kind)
    return path


def test_a_zip_is_seen_as_its_folder(place, zipped, tmp_path):
    assert seen(zipped, tmp_path) == seen(place.raw, tmp_path)


def test_a_zip_cut_or_damaged_is_refused(zipped, tmp_path):
    content = zipped.read_bytes()
    zipped.write_bytes(content[:-30])
    with pytest.raises(UserError, match=r"raw\.zip: damaged zip: .*; get it again"):
        open_tree(zipped, tmp_path)
    zipped.write_bytes(content)
    for file in [file for file in open_tree(zipped, tmp_path).files("") if file.size]:
        damaged = bytearray(content)
        damaged[file.offset + 1] ^= 4
        zipped.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"raw\.zip: damaged zip: {file.path} has another checksum; get it again"):
            seen(zipped, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filename": "../x.png"}, r"member \.\./x\.png points outside the archive; refused"),
        ({"external_attr": 0o120777 << 16}, r"member x\.png is a link; links in archives are refused"),
        ({"compress_type": zipfile.ZIP_LZMA}, r"member x\.png is encrypted or packed by another method"),
    ],
)
def test_members_of_zips_that_no_data_set_should_have_are_refused(tmp_path, change, message):
    member = zipfile.ZipInfo("x.png")
    for key, value in change.items():
        setattr(member, key, value)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(member, b"content")
    with pytest.raises(UserError, match=message):
        open_tree(tmp_path / "a.zip", tmp_path)


def test_a_tar_in_a_tar_is_read_in_place(place, tmp_path):
    fill(place)
    outer = tmp_path / "outer.tar"
    with tarfile.open(outer, "w") as tar:
        tar.add(place.tar("first.tar"), "first.tar")
        tar.add(place.tar("second.tar"), "in/second.tar")
    tree = open_tree(outer, tmp_path)
    with RawReader() as reader:
        for path in ("first.tar", "in/second.tar"):
            inner = open_nested_tar(tree.find(path), tree)
            assert {file.path: reader.read(file) for file in inner.files("")} == FILES
            assert {file.source for file in inner.files("")} == {outer}


def test_a_truncated_tar_in_a_tar_is_refused_and_never_read_past_its_end(place, tmp_path):
    fill(place)
    whole = place.tar().read_bytes()
    last = max(file.offset + file.size for file in open_tree(place.folder / "raw.tar", tmp_path).files(""))
    lengths = (512, last - 100, last, -(-last // 512) * 512)
    for length, names in itertools.product(lengths, (("cut.tar", "next.tar"), ("next.tar", "cut.tar"))):
        outer = tmp_path / "outer.tar"
        with tarfile.open(outer, "w") as tar:
            for name in names:
                content = whole[:length] if name == "cut.tar" else whole
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        tree = open_tree(outer, tmp_path)
        with pytest.raises(UserError, match=r"outer\.tar/cut\.tar: (damaged tar|neither folder)"):
            open_nested_tar(tree.find("cut.tar"), tree)


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
    with RawReader() as reader, pytest.raises(UserError, match=r"train/ape/1\.png cannot be read: No such file"):
        reader.read(file)
    tree = open_tree(place.tar(), tmp_path)
    file = next(file for file in tree.files("") if file.path == "train/ape/deep/2.png")
    tree.source.write_bytes(tree.source.read_bytes()[: file.offset + 5])
    with RawReader() as reader, pytest.raises(UserError, match="the archive ended too early"):
        reader.read(file)


def sparse(path, name, size):
    """A tar with one huge member, which takes no room on the disk."""
    info = tarfile.TarInfo(name)
    info.size = size
    path.write_bytes(info.tobuf())
    os.truncate(path, len(info.tobuf()) + size + 1024)
    return path


def test_a_member_of_ten_gigabytes_is_refused_by_its_header(tmp_path):
    with pytest.raises(UserError, match=r"train/ape/1\.png has 10,737,418,240 bytes; the limit for one file is"):
        open_tree(sparse(tmp_path / "a.tar", "train/ape/1.png", 10 * 2**30), tmp_path)
    (file,) = open_tree(sparse(tmp_path / "b.tar", "labels.txt", 10 * 2**30), tmp_path).files("")
    with RawReader() as reader, pytest.raises(UserError, match=r"labels\.txt has .* bytes; the limit for one file"):
        reader.read(file)


def test_a_file_of_ten_gigabytes_in_a_folder_is_refused_by_its_size(place):
    place.write("1.png", b"x")
    os.truncate(place.raw / "1.png", 10 * 2**30)
    with pytest.raises(UserError, match="the limit for one file"):
        list(visible_images(open_tree(place.raw, place.folder).files(""), "", Scan({})))


def test_a_compressed_tar_is_refused_at_the_header_that_is_wrong(tmp_path):
    """The contents that the header announces never come: who unpacked first would miss them, or fill the disk."""
    for name, size, message in (
        ("train/ape/1.png", 2**40, "the limit for one file is"),
        ("train/notes.bin", 2**60, "more than the .* that are free in"),
        ("../up.png", 10, "points outside the archive"),
    ):
        info = tarfile.TarInfo(name)
        info.size = size
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf() + bytes(4096)))
        scratch = tmp_path / name.replace("/", "-")
        scratch.mkdir()
        with pytest.raises(UserError, match=message):
            open_tree(path, scratch)
        assert sum(file.stat().st_size for file in scratch.iterdir()) < 2**20


@pytest.mark.slow
def test_what_follows_the_end_of_a_compressed_tar_is_not_unpacked_without_end(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x.txt"), io.BytesIO(b""))
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes() + bytes(2**27)))
    (tmp_path / "scratch").mkdir()
    with pytest.raises(UserError, match="it goes on after the end of its tar"):
        open_tree(path, tmp_path / "scratch")


def test_a_zip_that_unpacks_to_more_than_it_says_is_damaged(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(2**26))
    # The size stands twice: before the content and in the directory.
    path.write_bytes(path.read_bytes().replace((2**26).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    (file,) = open_tree(path, tmp_path).files("")
    assert file.size == 100
    tracemalloc.start()
    with RawReader() as reader, pytest.raises(UserError, match="damaged zip"):
        reader.read(file)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_neither_folder_nor_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "raw"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match="raw: cannot be read: it is neither a folder nor a regular file"):
        open_tree(path, tmp_path)
