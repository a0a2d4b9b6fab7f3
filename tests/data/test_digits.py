"""The embedded digits are the same files everywhere."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from distillery.data.digits import write_digits
from distillery.data.png import encode_png

# What every machine must write; data.dvc holds the same promise.
TREE_SHA256 = "cdfa86d39efba537f5566a2672c11dd17d53f05a0d2251f61b0f2380d0e0cb07"


@pytest.mark.slow
def test_the_tree_has_the_same_bytes_everywhere(tmp_path):
    write_digits(tmp_path / "digits")
    files = sorted(path for path in (tmp_path / "digits").rglob("*") if path.is_file())
    total = hashlib.sha256()
    for path in files:
        total.update(path.relative_to(tmp_path).as_posix().encode() + path.read_bytes())
    assert len(files) == 1797
    assert total.hexdigest() == TREE_SHA256
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


@pytest.mark.slow
def test_every_scan_is_there_once_with_its_label_and_the_split_is_stratified(tmp_path):
    write_digits(tmp_path / "digits")
    scans = load_digits()
    seen = {}
    for path in (tmp_path / "digits").rglob("*.png"):
        index = int(path.stem)
        seen[index] = path.parts[-3]
        assert int(path.parts[-2]) == scans.target[index]
        with Image.open(path) as image:
            assert image.mode == "L"
            assert np.abs(np.asarray(image) * (16 / 255) - scans.images[index]).max() < 0.04
    assert sorted(seen) == list(range(1797))
    for label in range(10):
        members = np.flatnonzero(scans.target == label)
        assert abs(sum(seen[index] == "val" for index in members) - len(members) / 5) < 1


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("mine")
    write_digits(tmp_path / "digits")
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["mine.txt"]


def test_the_encoder_stores_pixels_without_compression():
    pixels = np.arange(15, dtype=np.uint8).reshape(3, 5)
    content = encode_png(pixels)
    assert pixels[1].tobytes() in content
    import io

    with Image.open(io.BytesIO(content)) as image:
        image.verify()
    with Image.open(io.BytesIO(content)) as image:
        assert (np.asarray(image) == pixels).all()
