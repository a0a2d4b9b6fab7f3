"""Shards are cut by count and bytes, and broken images are found."""

import random
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distillery.data import shards
from distillery.data.decode import open_image
from distillery.data.raw import RawFile
from distillery.data.shards import BadImageError, channel_sums, examine, split_into_shards
from distillery.data.sources import RawImage

SIZES = st.lists(st.one_of(st.integers(0, 100), st.just(2**28 + 1), st.just(2**27)), max_size=60)


@given(SIZES, st.integers(1, 9))
def test_shards_are_contiguous_bounded_and_no_fewer_than_needed(sizes, most):
    images = [RawImage(RawFile(str(index), size, Path()), str(index), 0) for index, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "IMAGES_PER_SHARD", most)
        parts = list(split_into_shards(images))
    assert [image for part in parts for image in part] == images
    weights = [sum(image.file.size for image in part) for part in parts]
    for part, weight in zip(parts, weights, strict=True):
        assert 1 <= len(part) <= most
        assert len(part) == 1 or weight <= 256 * 2**20
    for part, weight, following in zip(parts, weights, parts[1:], strict=False):
        assert len(part) == most or weight + following[0].file.size > 256 * 2**20


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "webp", "tiff"])
def test_a_file_cut_anywhere_is_broken(encode, noise, kind):
    content = encode(noise(3, (40, 30)), kind)
    examine(content)
    # Of a PNG, only the checksum of the empty last chunk may be lacking.
    whole = len(content) - (4 if kind == "png" else 0)
    for length in [*range(0, whole, 41), *range(whole - 30, whole)]:
        with pytest.raises(BadImageError):
            examine(content[:length])


@pytest.mark.parametrize("saved", [{}, {"quality": 30, "progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_what_pillow_makes_of_it_also_a_damaged_one(saved, mode):
    draw = random.Random(0)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)).convert(mode)
    noise.save(file := BytesIO(), "JPEG", **({} if mode != "RGB" and "keep_rgb" in saved else saved))
    for _ in range(60):
        content = bytearray(file.getvalue())
        for _ in range(draw.randrange(3)):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        content += bytes(draw.randrange(2) * 7)
        try:
            with open_image(bytes(content)) as opened:
                expected = np.asarray(opened.convert("RGB"))
        except Exception:  # Pillow's readers raise anything
            with pytest.raises(BadImageError):
                examine(bytes(content))
        else:
            image, pixels_HWC = examine(bytes(content))
            assert np.array_equal(pixels_HWC, expected)
            assert image.size == pixels_HWC.shape[1::-1]


@pytest.mark.parametrize("shape", [(1, 1), (255, 3), (256, 1), (257, 2), (1031, 5)])
@pytest.mark.parametrize("least", [0, 255])
def test_sums_of_channels_are_exact_at_any_height(shape, least):
    pixels_HWC = np.random.default_rng(0).integers(least, 256, (*shape, 3), dtype=np.uint8)
    wide_HWC = pixels_HWC.astype(np.int64)
    sums, squares = channel_sums(pixels_HWC)
    assert sums.tolist() == wide_HWC.sum(axis=(0, 1)).tolist()
    assert squares.tolist() == (wide_HWC**2).sum(axis=(0, 1)).tolist()


def test_every_flipped_bit_of_a_pngs_pixels_is_found(noise_png):
    content = noise_png(3)
    begin = content.index(b"IDAT")
    end = content.index(b"IEND") - 4
    for position in range(begin, end):
        with pytest.raises(BadImageError):
            examine(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])


def test_faults_are_told_in_one_line_without_addresses():
    for content, reason in ((b"", "the file is empty"), (b"not an image", "not an image, or of an unknown kind")):
        with pytest.raises(BadImageError, match=f"^{reason}$"):
            examine(content)


@pytest.mark.slow
def test_workers_do_not_import_torch():
    import subprocess
    import sys

    code = "import distillery.data.parallel, distillery.data.prepare, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
