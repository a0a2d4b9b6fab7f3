"""Crops follow the rule that they are named after, and lie inside the image."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import v2

from distillery.data.augment import crop
from distillery.data.augment.crop import CentreSquare, ResizedCrop, apply_crop
from distillery.experiment.schema.augmentation import RandomResizedCrop
from distillery.experiment.schema.recipe import Preprocess

SIDES = st.integers(1, 700)


pytestmark = pytest.mark.usefixtures("one_thread")


def resized_crop(rule="torchvision", size=8, **options):
    return ResizedCrop(RandomResizedCrop(name="random_resized_crop", rule=rule, **options), size)


def draws(crop, height, width, count):
    torch.manual_seed(0)
    return [crop.draw(height, width) for _ in range(count)]


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.sampled_from(["torchvision", "dali", "bake"]), st.integers(0, 9))
def test_a_window_lies_inside_the_image_and_makes_the_square(height, width, rule, seed):
    crop = resized_crop(rule)
    torch.manual_seed(seed)
    found = crop.draw(height, width)
    assert 0 <= found.top < found.top + found.height <= height
    assert 0 <= found.left < found.left + found.width <= width
    assert 0 <= found.cut_top <= found.new_height - 8
    assert 0 <= found.cut_left <= found.new_width - 8


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, st.sampled_from([1, 2, 4, 8]), st.integers(0, 9))
def test_a_reduced_image_has_room_for_the_reduced_window(height, width, reduction, seed):
    torch.manual_seed(seed)
    found = resized_crop().draw(height, width)
    small = -(-height // reduction), -(-width // reduction)
    reduced = found.reduced(reduction, *small)
    assert 0 <= reduced.top <= reduced.top + reduced.height <= small[0]
    assert 0 <= reduced.left <= reduced.left + reduced.width <= small[1]
    assert abs(reduced.top * reduction - found.top) <= reduction / 2
    assert abs(reduced.height * reduction - found.height) <= reduction + reduction / 2


def test_torchvisions_crop_is_torchvisions():
    picture = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    crop, theirs = resized_crop(scale=(0.2, 0.9), ratio=(0.5, 2.0)), v2.RandomResizedCrop(8, (0.2, 0.9), (0.5, 2.0))
    for seed in range(30):
        torch.manual_seed(seed)
        expected = theirs(picture)
        torch.manual_seed(seed)
        assert torch.equal(apply_crop(picture, crop.draw(50, 70), crop), expected)


def quantiles(values):
    return np.quantile(values, np.linspace(0.05, 0.95, 10))


@pytest.mark.parametrize(("height", "width"), [(300, 400), (90, 500)])
def test_dalis_crop_has_the_distribution_of_dalis_own(height, width):
    dali = pytest.importorskip("nvidia.dali", reason="the extra `dali` is for Linux")

    @dali.pipeline_def(batch_size=3000, num_threads=1, device_id=None, seed=1)
    def pipeline():
        shape = dali.fn.constant(idata=[height, width], dtype=dali.types.INT64)
        anchor, window = dali.fn.random_crop_generator(shape, random_area=[0.08, 1.0], num_attempts=100)
        return anchor, window

    theirs = np.concatenate([output.as_array() for output in pipeline().run()], axis=1)
    ours = np.array([found[:4] for found in draws(resized_crop("dali"), height, width, 3000)])
    for column in range(4):
        difference = np.abs(quantiles(theirs[:, column]) - quantiles(ours[:, column]))
        assert (difference <= 0.05 * max(height, width)).all()
    for found in (theirs, ours):
        ratio = found[:, 3] / found[:, 2]
        assert 0.75 <= ratio.min() <= ratio.max() <= 4 / 3 + 1e-6


@pytest.mark.parametrize(
    ("rule", "numbers", "height", "width"),
    [
        ("bake", [0.25, 0.5, 0.9], 490, 510),  # the middle of 3/4..4/3 is 25/24
        ("bake", [0.25, 0.5, 0.4], 510, 490),  # and below one half, sides are swapped
        ("bake", [0.25, 0.0, 0.9], 577, 433),
        ("dali", [0.25, 0.5], 500, 500),  # the middle of the logarithms is 1
    ],
)
def test_area_and_ratio_are_drawn_by_the_rule(monkeypatch, rule, numbers, height, width):
    drawn = iter(numbers)
    monkeypatch.setattr(crop, "_uniform", lambda low, high: low + (high - low) * next(drawn))
    found = resized_crop(rule, scale=(1e-9, 1.0)).draw(1000, 1000)
    assert (found.height, found.width) == (height, width)


def test_torchvisions_rule_draws_what_torchvision_draws_and_no_more():
    rule = ResizedCrop(RandomResizedCrop(name="random_resized_crop"), 8)
    for seed, (height, width) in enumerate([(400, 500), (1, 1), (3, 40), (2000, 9), (60, 300), (224, 224)] * 200):
        torch.manual_seed(seed)
        found, after = rule.draw(height, width)[:4], torch.rand(())
        torch.manual_seed(seed)
        sized = torch.empty(()).expand(1, height, width)
        assert found == TorchvisionCrop.get_params(sized, [0.08, 1.0], [3 / 4, 4 / 3])
        assert after == torch.rand(())


@pytest.mark.slow
def test_a_crop_is_drawn_and_resized_without_importing_torchvision():
    script = (
        "import sys, torch\n"
        "from distillery.data.augment.crop import ResizedCrop, apply_crop\n"
        "from distillery.experiment.schema.augmentation import RandomResizedCrop\n"
        "crop = ResizedCrop(RandomResizedCrop(name='random_resized_crop'), 8)\n"
        "apply_crop(torch.zeros(3, 20, 30, dtype=torch.uint8), crop.draw(20, 30), crop)\n"
        "assert not {'torch._dynamo', 'torchvision'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_processor_that_resizes_no_bytes_rounds_floats_as_torchvision_has_it(monkeypatch):
    from torchvision.transforms.v2.functional import _geometry

    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    monkeypatch.setattr(_geometry, "_do_native_uint8_resize_on_cpu", lambda _: False)
    expected = v2.functional.resize(image, [8, 8], antialias=True)
    monkeypatch.setattr(crop, "_resizes_bytes", lambda: False)
    assert torch.equal(apply_crop(image, crop.CropParams(0, 0, 50, 70, 8, 8), resized_crop()), expected)


def test_bakes_crop_never_reaches_the_last_row_and_column():
    found = draws(resized_crop("bake", scale=(0.5, 0.5), ratio=(1, 1)), 10, 10, 400)
    assert {(window.height, window.width) for window in found} == {(7, 7)}
    assert {window.top for window in found} == {window.left for window in found} == {0, 1, 2}
    torchvisions = draws(resized_crop(scale=(0.5, 0.5), ratio=(1, 1)), 10, 10, 400)
    assert {window.top for window in torchvisions} == {0, 1, 2, 3}


def test_bakes_crop_falls_back_on_the_centre():
    """Nothing of a large area fits into a very long image; the short side is resized and the centre cut."""
    (found,) = draws(resized_crop("bake", size=8, scale=(1, 1)), 10, 101, 1)
    assert found == (0, 0, 10, 101, 8, 80, 0, 36)


def test_bake_resizes_as_opencv_does_by_default():
    """Without antialiasing, a tenfold reduction sees two pixels of ten a side."""
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    picture[:, 1::10, 1::10] = 255
    centre = CentreSquare(Preprocess(size=4, rule="bake"))
    small = apply_crop(picture, centre.draw(40, 40), resized_crop("bake", size=4))
    assert small.max() == 0
    smooth = apply_crop(picture, CentreSquare(Preprocess(size=4)).draw(40, 40), resized_crop(size=4))
    assert smooth.min() > 0


def test_bakes_centre_is_the_original_one(golden):
    stored, _ = golden("bake_transforms")
    picture = torch.from_numpy(stored["hwc"]).permute(2, 0, 1)
    _, height, width = picture.shape
    crop = CentreSquare(Preprocess(size=6, resize=height, rule="bake"))
    cut = apply_crop(picture, crop.draw(height, width), crop)
    assert torch.equal(cut.permute(1, 2, 0), torch.from_numpy(stored["center_crop6"]))
    assert crop.draw(height, width).cut_top == math.ceil((height - 6) / 2)
    usual = CentreSquare(Preprocess(size=6, resize=height)).draw(height, width)
    assert usual.cut_top != crop.draw(height, width).cut_top


@settings(deadline=None, max_examples=150)
@given(
    SIDES,
    SIDES,
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_a_window_is_resized_to_torchvisions_bytes(height, width, new_height, new_width, interpolation, smooth, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).permute(2, 0, 1)
    top, left = seed % height, seed % width
    params = crop.CropParams(top, left, height - top, width - left, new_height, new_width)
    rule = resized_crop(size=1000)
    rule.interpolation, rule.antialias = interpolation, smooth
    mode = v2.InterpolationMode(crop._MODES[interpolation])
    window = image[:, top:, left:]
    expected = v2.functional.resize(window, [new_height, new_width], mode, antialias=smooth)
    assert torch.equal(apply_crop(image, params, rule), expected)
