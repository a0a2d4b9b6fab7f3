"""Every kind of image becomes the RGB that Pillow makes of it, and what that means."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from distillery.data import decode
from distillery.data.decode import (
    FORMATS,
    REDUCTIONS,
    decode_rgb,
    image_size,
    is_plain_png,
    is_reducible,
    open_image,
)

GENERATOR = np.random.Generator(np.random.Philox(key=7))
RGB = Image.fromarray(GENERATOR.integers(0, 256, (9, 7, 3), dtype=np.uint8))
PALETTE = RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
DEEP = Image.fromarray((np.arange(63).reshape(9, 7) * 1000).astype(np.uint16))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


CASES = {
    "RGB": encode(RGB, "png"),
    "RGB with transparent colour": encode(RGB, "png", transparency=(1, 2, 3)),
    "greyscale": encode(RGB.convert("L"), "png"),
    "greyscale with transparent value": encode(RGB.convert("L"), "png", transparency=7),
    "greyscale with alpha": encode(RGB.convert("LA"), "png"),
    "1-bit": encode(RGB.convert("1"), "png"),
    "alpha": encode(RGB.convert("RGBA"), "png"),
    "palette": encode(PALETTE, "png"),
    "palette with transparent index": encode(PALETTE, "png", transparency=3),
    "palette with alpha": encode(PALETTE, "png", transparency=bytes(range(16))),
    "16-bit greyscale": encode(DEEP, "png"),
    "32-bit integers": encode(Image.fromarray(np.arange(63, dtype=np.int32).reshape(9, 7) * 1000), "tiff"),
    "floats": encode(Image.fromarray(np.arange(63, dtype=np.float32).reshape(9, 7) * 10), "tiff"),
    "JPEG": encode(RGB, "jpeg"),
    "greyscale JPEG": encode(RGB.convert("L"), "jpeg"),
    "CMYK JPEG": encode(RGB.convert("CMYK"), "jpeg"),
    "CMYK TIFF": encode(RGB.convert("CMYK"), "tiff"),
    "Lab": encode(Image.merge("LAB", RGB.split()), "tiff"),
    "WebP with alpha": encode(RGB.convert("RGBA"), "webp"),
    "GIF": encode(PALETTE, "gif", transparency=2),
    "BMP": encode(RGB, "bmp"),
    "PPM": encode(RGB, "ppm"),
}


@pytest.mark.parametrize("kind", CASES)
def test_it_is_pillows_rgb_without_warnings(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(Image.open(io.BytesIO(CASES[kind])).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_CHW = decode_rgb(memoryview(CASES[kind]).cast("b"))  # signed, as Arrow's memory is seen
    assert image_CHW.dtype == torch.uint8
    assert image_CHW.permute(1, 2, 0).is_contiguous()
    assert (image_CHW.permute(1, 2, 0).numpy() == expected).all()


def test_greyscale_is_repeated_and_alpha_is_dropped_without_blending():
    grey = decode_rgb(CASES["greyscale"])
    assert (grey == grey[:1]).all()
    assert (decode_rgb(CASES["alpha"]).permute(1, 2, 0).numpy() == np.asarray(RGB)).all()


def test_deep_greyscale_is_clipped():
    assert decode_rgb(CASES["16-bit greyscale"])[0].flatten().tolist() == [0, *[255] * 62]


def test_adobes_inverted_cmyk_has_the_right_colours():
    red = Image.new("RGB", (16, 16), (200, 30, 40))
    plain = red.convert("CMYK")
    content = encode(plain, "jpeg", quality=95)
    assert b"Adobe" in content
    assert (decode_rgb(content).float().mean((1, 2)) - torch.tensor([200.0, 30.0, 40.0])).abs().max() < 6


def test_the_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode_rgb(encode(RGB, "jpeg", exif=exif)).shape == (3, 9, 7)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = encode(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode_rgb(content)[:, 0, 0].tolist() == [255, 0, 0]


def smooth(width, height, mode="RGB"):
    small = Image.fromarray(GENERATOR.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [40, 75, 95])
def test_a_jpeg_has_pillows_pixels_exactly(quality, subsampling, progressive):
    for width, height, mode in ((1, 1, "RGB"), (7, 9, "RGB"), (64, 48, "RGB"), (83, 61, "RGB"), (33, 17, "L")):
        options = {} if mode == "L" else {"subsampling": subsampling}
        content = encode(smooth(width, height, mode), "jpeg", quality=quality, progressive=progressive, **options)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert (decode_rgb(memoryview(content)).permute(1, 2, 0).numpy() == expected).all()


def test_a_damaged_jpeg_is_pillows_to_judge():
    content = encode(smooth(64, 48), "jpeg")
    with pytest.raises(OSError, match="truncated"):
        decode_rgb(content[:-200])
    stray = content[:-2] + b"\x00\x00" + content[-2:]  # Pillow passes over what follows the image
    expected = np.asarray(Image.open(io.BytesIO(stray)))
    assert (decode_rgb(stray).permute(1, 2, 0).numpy() == expected).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_reduced_jpeg_is_the_mean_of_its_blocks(reduction):
    picture = smooth(163, 121)
    content = encode(picture, "jpeg", quality=97, subsampling="4:4:4")
    reduced = decode_rgb(content, reduction)
    assert reduced.shape == (3, -(-121 // reduction), -(-163 // reduction))
    height, width = 121 // reduction, 163 // reduction
    pixels = np.asarray(picture, dtype=float)[: height * reduction, : width * reduction]
    blocks = pixels.reshape(height, reduction, width, reduction, 3).mean((1, 3))
    assert np.abs(reduced.permute(1, 2, 0).numpy()[:height, :width] - blocks).mean() < 1.5


@pytest.mark.parametrize("kind", CASES)
def test_the_size_is_read_from_the_header(kind):
    assert image_size(CASES[kind]) == decode_rgb(CASES[kind]).shape[1:]
    signed = memoryview(CASES[kind]).cast("b")
    assert image_size(signed) == image_size(CASES[kind])
    assert is_reducible(CASES[kind]) == is_reducible(signed) == (kind in ("JPEG", "greyscale JPEG"))
    plain = kind in ("RGB", "RGB with transparent colour", "greyscale", "greyscale with transparent value")
    assert is_plain_png(CASES[kind]) == is_plain_png(signed) == plain


def dos_postscript():
    """PostScript behind the DOS header, which Pillow would hand to Ghostscript whatever the file is called."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    return b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + len(program).to_bytes(4, "little") + bytes(18) + program


@pytest.mark.parametrize("kind", ["postscript", "dos postscript", "PCX", "TGA", "ICO", "PDF", "PSD", "DDS"])
def test_only_kinds_of_images_that_start_no_program_are_opened(kind):
    if kind == "dos postscript":
        content = dos_postscript()
    elif kind == "postscript":
        content = dos_postscript()[30:]
    elif kind in ("PCX", "TGA", "ICO", "DDS"):
        content = encode(RGB, kind)
    else:
        content = {"PDF": b"%PDF-1.4\n%%EOF\n", "PSD": b"8BPS\x00\x01" + bytes(40)}[kind]
    for read in (decode_rgb, image_size):
        with pytest.raises(UnidentifiedImageError):
            read(content)


def test_no_reader_of_pillow_is_used_but_the_listed_ones(monkeypatch):
    asked = []
    monkeypatch.setattr(Image, "open", lambda file, mode="r", formats=None: asked.append(formats) or RGB)
    open_image(b"")
    assert asked == [FORMATS]
    source = Path(decode.__file__).parents[1]
    opened = [path for path in source.rglob("*.py") if re.search(r"Image\.open\(", path.read_text())]
    assert opened == [Path(decode.__file__)]
    assert not {"EPS", "PDF", "WMF", "FPX", "MIC", "PSD", "ICNS", "GRIB", "HDF5", "BUFR"} & set(FORMATS)


def test_avif_is_read():
    content = encode(RGB, "avif", quality=100)
    assert decode_rgb(content).shape == (3, 9, 7)
