"""Raw images become the same shards and manifest whatever the way, and nothing half-made is left."""

import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageOps

from distillery.data import parallel, shards
from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.data.manifest import load_manifest
from distillery.data.prepare import summary
from distillery.errors import UserError


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 4)


def test_the_manifest_describes_the_images(place, encode, noise):
    place.fill(train=5, val=2)
    place.write("train/ape/grey.png", encode(noise(90, (4, 20), "L")))
    place.write("train/ape/photo.jpeg", encode(noise(91), "jpeg"))
    place.write("train/.DS_Store", b"x")
    place.write("train/list.txt", b"x")
    manifest = place.prepare()
    train = manifest.splits["train"]
    assert manifest.classes == ("ape", "bee")
    assert (train.images, train.images_per_class, manifest.splits["val"].images) == (12, (7, 5), 4)
    assert (train.width, train.height) == ((4, 8), (6, 20))
    assert (train.modes, train.formats) == ({"L": 1, "RGB": 11}, {"JPEG": 1, "PNG": 11})
    assert (manifest.ignored.hidden, manifest.ignored.extensions) == (1, {".txt": 1})
    assert manifest.skipped == ()
    assert load_manifest(place.output) == manifest
    for split in manifest.splits.values():
        for shard in split.shards:
            content = (place.output / shard.file).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
    assert str(place.folder) not in (place.output / "manifest.json").read_text()


def test_mean_and_deviation_are_those_of_the_training_pixels(place):
    manifest = place.fill().prepare()
    pixels = np.concatenate(
        [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in sorted((place.raw / "train").rglob("*.png"))]
    )
    assert manifest.statistics.mean == pytest.approx(pixels.mean(axis=0), rel=1e-12)
    assert manifest.statistics.std == pytest.approx(pixels.std(axis=0), rel=1e-12)


def test_a_single_colour_has_a_deviation_of_exactly_zero(place, encode):
    for split in ("train", "val"):
        place.write(f"{split}/ape/1.png", encode(Image.new("RGB", (3, 3), (10, 200, 255))))
    manifest = place.prepare()
    assert manifest.statistics.std == (0.0, 0.0, 0.0)
    assert manifest.statistics.mean == (10 / 255, 200 / 255, 1.0)


@pytest.mark.slow
def test_folder_tar_and_any_number_of_workers_give_the_same_bytes(place, small_shards):
    place.fill(train=7, val=3)
    place.prepare()
    expected = contents(place.output)
    assert len(expected) == 7
    packed = [
        place.tar(),
        place.tar("reversed.tar", order=lambda files: sorted(files, reverse=True)),
        place.tar("below.tar.gz", "w:gz", top="./top/"),
        place.tar("raw.tar.xz", "w:xz"),
    ]
    for number, path in enumerate([place.raw, *packed]):
        for workers in (1, 3):
            if workers == 3 and number > 1:
                continue
            output = place.folder / f"out{number}-{workers}" / "toy"
            place.prepare(path, output, workers)
            assert contents(output) == expected
            assert [found.name for found in output.parent.iterdir()] == ["toy"]


def test_the_datasets_library_reads_the_shards(place, small_shards, tmp_path):
    import datasets

    from distillery.data.shards import arrow_schema

    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["ape", "bee"]))
    assert features.arrow_schema.equals(arrow_schema(["ape", "bee"]), check_metadata=True)
    place.fill().prepare()
    files = {split: sorted(map(str, place.output.glob(f"{split}-*.arrow"))) for split in ("train", "val")}
    loaded = datasets.load_dataset("arrow", data_files=files, cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].features == features
    assert loaded["train"]["label"][:] == [0] * 5 + [1] * 5
    for row, path in zip(loaded["train"], sorted((place.raw / "train").rglob("*.png")), strict=True):
        assert (np.asarray(row["image"]) == np.asarray(Image.open(path))).all()
    assert loaded["val"].cast_column("image", datasets.Image(decode=False))[3]["image"]["path"] == "val/bee/001.png"


def test_shards_keep_the_files_bytes_in_order_and_their_labels(place, small_shards):
    manifest = place.fill().prepare()
    for split in ("train", "val"):
        files = sorted((place.raw / split).rglob("*.png"))
        images = ArrowImages(place.output, manifest, split)
        assert [bytes(images.encoded(index)) for index in range(len(images))] == [path.read_bytes() for path in files]
        batches = [pa.ipc.open_stream(place.output / shard.file).read_all() for shard in manifest.splits[split].shards]
        table = pa.concat_tables(batches)
        assert table["label"].to_pylist() == images.labels.tolist()
        assert [row["path"] for row in table["image"].to_pylist()] == [
            path.relative_to(place.raw).as_posix() for path in files
        ]


@pytest.mark.slow
def test_the_process_that_prepares_works_with_the_others(place, small_shards, monkeypatch):
    here, original = [], parallel.write_shard
    monkeypatch.setattr(parallel, "write_shard", lambda task, report: here.append(task) or original(task, report))
    manifest = place.fill(train=40, val=8).prepare(workers=2)
    assert manifest.splits["train"].images == 80
    assert here


def test_the_digest_follows_pixels_and_labels_and_nothing_else(place, monkeypatch):
    first = place.fill().prepare().digest
    (place.raw / "train/ape/000.png").rename(place.raw / "train/ape/0000.png")
    place.write("train/notes.txt", b"x")
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 3)
    assert place.prepare().digest == first
    # The last of one class becomes the first of the next: the same bytes in the same order under other labels.
    (place.raw / "train/ape/004.png").rename(place.raw / "train/bee/00.png")
    moved = place.prepare().digest
    assert moved != first
    (place.raw / "train/bee").rename(place.raw / "train/cow")
    (place.raw / "val/bee").rename(place.raw / "val/cow")
    assert place.prepare().digest not in (first, moved)


def test_copies_are_found_across_and_within_splits(place, noise_png, capsys):
    place.fill()
    place.write("val/bee/leak.png", noise_png(1))
    place.write("train/bee/again.png", noise_png(2))
    place.write("val/ape/again.png", noise_png(13))
    place.write("val/bee/again.png", noise_png(13))
    manifest = place.prepare()
    assert manifest.duplicates.across_splits == (("train/ape/000.png", "val/bee/leak.png"),)
    assert (manifest.duplicates.within_train, manifest.duplicates.within_val) == (1, 2)
    warning = "1 validation image is also among the training images, e.g. val/bee/leak.png and train/ape/000.png"
    assert warning in capsys.readouterr().err


BROKEN = {
    "empty": (lambda png: b"", "the file is empty"),
    "text": (lambda png: b"<html>not found</html>", "not an image"),
    "cut": (lambda png: png[:-20], "broken PNG|truncated|Truncated"),
    "no end": (lambda png: png[:-12], "."),
    "flipped bit": (lambda png: png[:60] + bytes([png[60] ^ 1]) + png[61:], "broken PNG"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_stops_with_its_path_and_leaves_everything_else(place, kind, noise_png):
    place.fill().prepare()
    before = contents(place.output)
    damage, reason = BROKEN[kind]
    place.write("train/bee/bad.png", damage(noise_png(99)))
    with pytest.raises(UserError) as caught:
        place.prepare()
    message = str(caught.value)
    assert re.search(rf"raw: 1 of 15 images cannot be decoded: train/bee/bad\.png: .*({reason})", message)
    assert "set `on_corrupt: skip` for 'toy' in datasets.yaml" in message
    assert "\n" not in message
    assert contents(place.output) == before
    listing = place.output.parent / "toy.corrupt.txt"
    assert listing.read_text().startswith("train/bee/bad.png\t")
    assert {path.name for path in place.output.parent.iterdir()} == {"toy", "toy.corrupt.txt"}
    (place.raw / "train/bee/bad.png").unlink()
    place.prepare()
    assert contents(place.output) == before
    assert not listing.exists()


@pytest.mark.slow
def test_all_broken_images_are_listed(place, small_shards):
    place.fill(train=9)
    for index in range(1, 9):
        place.write(f"train/ape/{index:03d}.png", b"")
    with pytest.raises(
        UserError, match=r"8 of 22 images .*001\.png: .*002\.png: .*003\.png: the file is empty; \.\.\. \("
    ):
        place.prepare(workers=2)
    assert len((place.output.parent / "toy.corrupt.txt").read_text().splitlines()) == 8


@pytest.mark.slow
def test_broken_images_are_skipped_when_asked(place, small_shards, capsys):
    place.fill(train=9).prepare()
    expected = load_manifest(place.output)
    for index in range(6):
        place.write(f"train/ape/0000{index}.png", b"broken")
    manifest = place.prepare(on_corrupt="skip", workers=2)
    assert manifest.digest == expected.digest
    assert manifest.statistics == expected.statistics
    assert [image.path for image in manifest.skipped] == [f"train/ape/0000{index}.png" for index in range(6)]
    images = ArrowImages(place.output, load_manifest(place.output), "train")
    assert len(images) == 18
    assert bytes(images.encoded(0)) == (place.raw / "train/ape/000.png").read_bytes()
    assert [shard.file for shard in manifest.splits["train"].shards][-1] == "train-00005-of-00006.arrow"
    assert "6 images cannot be decoded and left out" in capsys.readouterr().err


def test_skipping_must_not_empty_a_class(place):
    place.fill(train=1)
    place.write("train/bee/000.png", b"broken")
    with pytest.raises(UserError, match=r"raw: train/bee/: none of its images can be decoded"):
        place.prepare(on_corrupt="skip")
    assert not place.output.exists()


def test_decompression_bombs_are_refused_before_they_are_decoded(place):
    """A whole, sound PNG of 30,000 x 30,000 black pixels, in a hundred kilobytes."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(1), bytes(1 + 30000 // 8)
    pixels = b"".join(packer.compress(rows * 1000) for _ in range(30)) + packer.flush()
    header = struct.pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert len(content) < 1_000_000
    place.fill()
    place.write("train/ape/bomb.png", content)
    with pytest.raises(UserError, match=r"train/ape/bomb\.png: .*(900000000|30000 x 30000) pixels"):
        place.prepare()


def test_an_image_below_pillows_error_but_above_its_warning_is_refused(place, encode):
    place.fill()
    place.write("train/ape/large.png", encode(Image.new("1", (12000, 9000))))
    with pytest.raises(UserError, match=r"large\.png: 12000 x 9000 pixels are more than the limit of 89,478,485"):
        place.prepare()


def test_a_png_in_a_jpegs_name_is_taken_for_what_it_is(place, noise_png):
    place.fill()
    place.write("train/ape/really_png.jpg", noise_png(50))
    assert place.prepare().splits["train"].formats == {"PNG": 11}


def test_an_archive_may_lie_alone_in_the_folder(place):
    expected = place.fill().prepare().digest
    (place.folder / "alone").mkdir()
    place.tar("alone/raw.tar.gz", "w:gz")
    (place.folder / "alone" / ".cache").mkdir()
    assert place.prepare(place.folder / "alone").digest == expected


def test_missing_raw_images_are_asked_for(place):
    with pytest.raises(UserError, match=r"raw: no raw images for data set 'toy': put train/<class>/\*"):
        place.prepare()
    assert not place.output.parent.exists()


@pytest.mark.slow
def test_the_bundled_digits_write_themselves(place):
    manifest = place.prepare(bundled="digits")
    assert (place.raw / "train" / "0").is_dir()
    assert [manifest.splits[split].images for split in ("train", "val")] == [1438, 359]
    assert manifest.duplicates.across_splits == ()


@pytest.mark.parametrize("name", ["notes.txt", "weights"])
def test_a_folder_with_other_things_is_not_replaced(place, name):
    place.fill()
    (place.output / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"toy: holds {name}, which is no part of a prepared data set"):
        place.prepare()
    assert (place.output / name).is_dir()


def test_leftovers_of_an_older_run_are_replaced(place):
    place.fill()
    place.output.mkdir(parents=True)
    (place.output / "train-00007-of-00009.arrow").write_bytes(b"old")
    (place.output / ".snakemake_timestamp").touch()
    place.prepare()
    assert sorted(contents(place.output)) == ["manifest.json", "train-00000-of-00001.arrow", "val-00000-of-00001.arrow"]


def test_deep_images_are_warned_about(place, encode):
    place.fill()
    place.write("val/ape/deep.png", encode(Image.fromarray(np.full((4, 4), 4000, np.uint16))))
    assert any(
        "1 image with more than 8 bits a channel: values above 255 become white; scale them" in line
        for line in summary(place.prepare(), place.output)
    )


SCRIPT = """
import sys, time
from pathlib import Path
from distillery.experiment.schema.dataset import Dataset
from distillery.data import prepare, parallel, shards
shards.IMAGES_PER_SHARD = 20
raw, output, workers, seconds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
examine = shards.examine

def take_time(content):
    time.sleep(seconds)
    return examine(content)

shards.examine = take_time
if __name__ == "__main__":
    prepare.prepare_dataset("toy", Dataset(path=str(raw)), output, workers)
    print("torch" in sys.modules)
"""
# Shells start background jobs, perhaps these tests, with SIGINT ignored, and children inherit that.
SCRIPT = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + SCRIPT


def start(place, workers, seconds):
    """Prepare in a session of its own, spending so many seconds on each image."""
    script = place.folder / "run.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(place.raw), str(place.output), str(workers), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def session_members(leader):
    """Processes of a session, found by their ids in /proc."""
    from pathlib import Path

    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(entry.name))
    return members


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_leaves_no_process_and_the_next_call_is_whole(place, number):
    place.fill(train=200, val=40)
    process = start(place, workers=2, seconds=0.03)
    deadline = time.monotonic() + 60
    while not list(place.output.parent.glob(".toy.*.partial/*.shard")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while session_members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert session_members(process.pid) == []
    assert not place.output.exists()
    if number == signal.SIGINT:
        assert list(place.output.parent.iterdir()) == []
    output, errors = start(place, workers=2, seconds=0).communicate(timeout=120)
    assert output == "False\n", errors
    assert [path.name for path in place.output.parent.iterdir()] == ["toy"]
    assert load_manifest(place.output).splits["train"].images == 400


def test_the_manifest_is_json_with_stable_keys(place):
    place.fill().prepare()
    keys = list(json.loads((place.output / "manifest.json").read_text()))
    assert keys[:6] == ["format", "name", "digest", "classes", "statistics", "splits"]
    assert keys[6:] == ["duplicates", "ignored", "skipped", "seal"]


def test_copies_are_found_by_their_pixels_and_contradictions_are_named(place, noise_png, noise, capsys):
    place.fill()
    other = io.BytesIO()
    noise(1).save(other, "png", compress_level=0)
    assert other.getvalue() != noise_png(1)
    place.write("train/bee/again.png", other.getvalue())
    place.write("val/ape/again.png", other.getvalue())
    manifest = place.prepare()
    assert manifest.duplicates.across_splits == (("train/ape/000.png", "val/ape/again.png"),)
    assert manifest.duplicates.within_train == 1
    assert manifest.duplicates.contradicting == (("train/ape/000.png", "train/bee/again.png"),)
    line = "1 image is there again under another label, e.g. train/ape/000.png and train/bee/again.png"
    assert line in capsys.readouterr().err


def turned(encode, noise, number, orientation=6):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(noise(number, (8, 6)), "jpeg", exif=exif)


def test_images_that_are_stored_on_the_side_are_counted_and_turned_when_asked(place, encode, noise, capsys):
    place.fill()
    content = turned(encode, noise, 50)
    place.write("train/ape/turned.jpg", content)
    place.write("val/bee/turned.jpg", turned(encode, noise, 51, 3))
    place.write("val/bee/upright.jpg", turned(encode, noise, 52, 1))
    stored = place.prepare()
    assert "warning: 2 images are stored on the side or mirrored" in capsys.readouterr().err
    assert [stored.splits[split].turned for split in ("train", "val")] == [1, 1]
    images = ArrowImages(place.output, stored, "train")
    assert bytes(images.encoded(5)) == content
    upright = place.prepare(orientation="exif")
    assert "on the side" not in capsys.readouterr().err
    assert upright.digest != stored.digest
    pixels = decode_rgb(ArrowImages(place.output, upright, "train").encoded(5))
    assert pixels.shape == (3, 8, 6)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert (pixels.permute(1, 2, 0).numpy() == expected).all()
    with pytest.raises(UserError, match="`orientation: exif` stores images anew, which `embed: false` forbids"):
        place.prepare(orientation="exif", embed=False)


def test_photographs_that_cannot_be_read_are_not_passed_over_in_silence(place, noise_png, capsys):
    place.fill()
    for number in range(3):
        place.write(f"train/ape/{number}.HEIC", b"x")
    place.write("val/bee/1.jxl", b"x")
    manifest = place.prepare()
    assert manifest.ignored.photographs == {"train/ape": 3, "val/bee": 1}
    err = capsys.readouterr().err
    assert "4 photographs of a kind that cannot be read left out (train/ape: 3, val/bee: 1)" in err
    for path in (place.raw / "train/ape").glob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"train/ape/ has 3 photographs of a kind that cannot be read \(convert to"):
        place.prepare()
    for path in place.raw.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"4 photographs of a kind that cannot be read, e\.g\. in train/ape/"):
        place.prepare()


def test_images_in_no_folder_and_a_single_class_are_told(place, noise_png, capsys):
    place.write("a.png", noise_png(1))
    with pytest.raises(UserError, match="1 image in no class folder; put images into train/<class>/"):
        place.prepare()
    (place.raw / "a.png").unlink()
    place.fill(classes=("ape",)).prepare()
    assert "warning: there is one class only" in capsys.readouterr().err


def test_two_forms_of_one_name_are_told_apart(place, noise_png):
    for split, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        place.write(f"{split}/{name}/1.png", noise_png(1))
    with pytest.raises(UserError, match="differ in Unicode form only; give them one name"):
        place.prepare()
