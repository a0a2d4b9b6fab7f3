"""Every kind of image becomes the RGB that Pillow makes of it, and what that means."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from distillery.data.decode import decode_rgb

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
        image_CHW = decode_rgb(memoryview(CASES[kind]))
    assert image_CHW.dtype == torch.uint8
    assert image_CHW.is_contiguous()
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
