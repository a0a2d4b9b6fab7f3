"""Each operation does what the configuration says, and the same address gives the same pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter
from timm.data.auto_augment import rand_augment_transform
from torchvision.transforms import v2

from distillery.data import transforms
from distillery.data.transforms import eval_transform, train_transform
from distillery.experiment.schema.augmentation import Augmentation
from distillery.experiment.schema.recipe import Preprocess
from distillery.randomness import seed_generators

pytestmark = pytest.mark.usefixtures("one_thread")


def image(height=40, width=60, seed=0):
    """A smooth picture, as photographs are: resampling noise would say nothing."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def build(*operations, size=16, **preprocess):
    parsed = TypeAdapter(tuple[Augmentation, ...]).validate_python(operations)
    return train_transform(Preprocess(size=size, **preprocess), parsed)


def draw(transform, picture, seed=0):
    seed_generators(seed, "augment")
    return transform(picture)


def in_pillow(picture, resize, size, resample):
    """Resize the short side and cut the centre as Pillow does it."""
    opened = Image.fromarray(picture.permute(1, 2, 0).numpy())
    short = min(opened.size)
    opened = opened.resize(tuple(int(resize * side / short) for side in opened.size), resample)
    left, top = (round((side - size) / 2) for side in opened.size)
    return torch.from_numpy(np.array(opened.crop((left, top, left + size, top + size)))).permute(2, 0, 1)


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (16, 16), (33, 47), (8, 9)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_evaluation_geometry_is_pillows(shape, interpolation):
    picture = image(*shape)
    square = eval_transform(Preprocess(size=16, resize=19, interpolation=interpolation))(picture)
    expected = in_pillow(picture, 19, 16, Image.Resampling[interpolation.upper()])
    assert square.dtype == torch.uint8
    difference = (square.int() - expected.int()).abs()
    if interpolation == "nearest":
        # A point exactly between two pixels may go to either; at these sizes that is one column or row.
        assert (difference > 0).float().mean() <= 2 / 16
    else:
        assert difference.max() <= 2


def test_the_short_side_becomes_size_when_resize_is_not_given():
    picture = image(40, 60)
    assert torch.equal(
        eval_transform(Preprocess(size=16))(picture), eval_transform(Preprocess(size=16, resize=16))(picture)
    )


def test_an_image_of_the_right_size_is_left_as_it_is():
    picture = image(16, 16)
    assert torch.equal(eval_transform(Preprocess(size=16))(picture), picture)
    assert eval_transform(Preprocess(size=16))(picture).data_ptr() == picture.data_ptr()
    assert eval_transform(Preprocess(size=16, resize=20))(picture).shape == (3, 16, 16)


OPERATIONS = [
    {"name": "random_crop", "padding": 2},
    {"name": "random_crop", "padding": 2, "mode": "reflect"},
    {"name": "random_crop", "padding": 0},
    {"name": "random_resized_crop"},
    {"name": "random_resized_crop", "scale": [0.2, 1.0], "ratio": [0.8, 1.25], "interpolation": "bicubic"},
    {"name": "random_resized_crop", "interpolation": "nearest"},
    {"name": "horizontal_flip"},
    {"name": "rotation", "degrees": 45},
    {"name": "grayscale", "p": 0.5},
    {"name": "rand_augment"},
    {"name": "rand_augment", "policy": "rand-m9-n3-mstd0.5"},
    {"name": "color_jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.3, "hue": 0.1},
    {"name": "color_jitter", "brightness": 0.2, "p": 0.5},
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("shape", [(40, 60), (16, 16), (9, 8)])
def test_every_operation_gives_bytes_of_the_right_shape_from_its_seed_alone(operation, shape):
    transform, picture = build(operation), image(*shape)
    before = picture.clone()
    first = draw(transform, picture)
    assert (first.dtype, first.shape) == (torch.uint8, (3, 16, 16))
    assert torch.equal(picture, before)
    assert torch.equal(draw(transform, picture), first)
    if operation.get("padding") != 0 or shape[0] != shape[1]:
        drawn = {draw(transform, picture, seed).numpy().tobytes() for seed in range(12)}
        assert len(drawn) > 1 or operation.get("padding") == 0


def test_a_padded_crop_is_a_window_of_the_padded_square_and_every_window_comes():
    picture = image(16, 16)
    for mode in ("constant", "reflect"):
        padded = v2.functional.pad(picture, [3], padding_mode=mode)
        windows = {padded[:, y : y + 16, x : x + 16].numpy().tobytes(): (y, x) for y in range(7) for x in range(7)}
        transform = build({"name": "random_crop", "padding": 3, "mode": mode})
        seen = [windows[draw(transform, picture, seed).contiguous().numpy().tobytes()] for seed in range(600)]
        assert len(set(seen)) == 49


def test_a_random_crop_moves_within_the_evaluations_square():
    picture = image(40, 60)
    square = eval_transform(Preprocess(size=16))(picture)
    assert torch.equal(build({"name": "random_crop", "padding": 0})(picture), square)
    assert torch.equal(build()(picture), square)


def test_a_random_resized_crop_works_on_the_whole_image():
    seed_generators(3, "augment")
    expected = v2.RandomResizedCrop(16, (0.2, 0.9), (0.5, 2.0))(image())
    operation = {"name": "random_resized_crop", "scale": [0.2, 0.9], "ratio": [0.5, 2.0]}
    assert torch.equal(draw(build(operation), image(), 3), expected)


@pytest.mark.parametrize(("p", "share"), [(0.0, 0), (1.0, 1), (0.3, 0.3)])
def test_flips_come_as_often_as_asked(p, share):
    picture = image(16, 16)
    transform = build({"name": "horizontal_flip", "p": p})
    drawn = [draw(transform, picture, seed) for seed in range(400)]
    flipped = sum(torch.equal(found, picture.flip(-1)) for found in drawn)
    assert flipped + sum(torch.equal(found, picture) for found in drawn) == 400
    assert abs(flipped / 400 - share) < 0.08


def test_grayscale_keeps_three_equal_channels_as_often_as_asked():
    transform = build({"name": "grayscale", "p": 0.4})
    drawn = [draw(transform, image(16, 16), seed) for seed in range(300)]
    grey = [bool((found == found[:1]).all()) for found in drawn]
    assert abs(np.mean(grey) - 0.4) < 0.1


def test_rotation_stays_within_its_degrees():
    """A bright spot on the right moves by the angle."""
    picture = torch.zeros(3, 65, 65, dtype=torch.uint8)
    picture[:, 30:35, 58:63] = 255
    transform = build({"name": "rotation", "degrees": 30}, size=65)
    angles = []
    for seed in range(200):
        rows, columns = torch.nonzero(draw(transform, picture, seed)[0] > 100, as_tuple=True)
        angles.append(float(torch.rad2deg(torch.atan2(32 - rows.float().mean(), columns.float().mean() - 32))))
    assert -31 < min(angles) < -25
    assert 25 < max(angles) < 31


def test_jitter_scales_by_factors_around_one():
    picture = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    transform = build({"name": "color_jitter", "brightness": 0.2})
    means = [float(draw(transform, picture, seed).float().mean()) for seed in range(200)]
    assert 79 <= min(means) < 85
    assert 115 < max(means) <= 120


def test_jitter_leaves_a_share_of_the_images_as_they_are():
    transform, picture = build({"name": "color_jitter", "brightness": 0.2, "p": 0.3}), image(16, 16)
    changed = [not torch.equal(draw(transform, picture, seed), picture) for seed in range(300)]
    assert 60 < sum(changed) < 120  # 90 are expected, with a deviation of 8


@pytest.mark.parametrize(
    ("normalize", "fill"),
    [
        ("imagenet", (124, 116, 104)),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, (26, 51, 76)),
        ("dataset", (102, 153, 255)),
        ("none", (128, 128, 128)),
    ],
)
def test_rand_augment_is_timms_own(normalize, fill):
    """The settings that timm's create_transform gives for this size, interpolation and mean."""
    settings = {"translate_const": 14, "img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform("rand-m7-mstd0.5-inc1", settings)
    parsed = TypeAdapter(tuple[Augmentation, ...]).validate_python([{"name": "rand_augment"}])
    preprocess = Preprocess(size=32, interpolation="bicubic", normalize=normalize)
    ours = train_transform(preprocess, parsed, dataset_mean=(0.4, 0.6, 1.0))
    picture = image(32, 32)
    changed = 0
    for seed in range(40):
        seed_generators(seed, "augment")
        expected = np.array(theirs(Image.fromarray(picture.permute(1, 2, 0).numpy())))
        found = draw(ours, picture, seed)
        assert (found.permute(1, 2, 0).numpy() == expected).all()
        changed += not torch.equal(found, picture)
    assert changed > 20


def test_operations_follow_the_written_order():
    flip, crop = {"name": "horizontal_flip", "p": 1.0}, {"name": "random_crop", "padding": 2}
    picture = image(16, 16)
    seed_generators(0, "augment")
    torch.rand(())  # the flip's draw
    expected = build(crop)(picture.flip(-1))
    assert torch.equal(draw(build(flip, crop), picture), expected)
    assert not torch.equal(draw(build(crop, flip), picture), expected)


def jpeg(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def test_reduced_decoding_shows_the_same_crop():
    """Over many crops of a large, smooth image the pixels stay close, and the draws that follow are the same."""
    picture = jpeg(image(400, 600))
    crop = {"name": "random_resized_crop", "scale": [0.3, 1.0]}
    whole = build(crop, {"name": "horizontal_flip"}, size=32)
    reduced = build(crop | {"reduced_decoding": True}, {"name": "horizontal_flip"}, size=32)
    for seed in range(20):
        seed_generators(seed, "augment")
        expected = whole.decode(picture).float()
        other = whole.decode(picture).float()
        seed_generators(seed, "augment")
        found = reduced.decode(picture).float()
        # Half a pixel of the reduced image is how far the crop may move.
        assert (found - expected).abs().mean() < min(5, (found - other).abs().mean() / 2)


def test_an_image_is_never_decoded_below_the_size_of_the_input(monkeypatch):
    seen = []
    decode = transforms.decode_rgb
    monkeypatch.setattr(transforms, "decode_rgb", lambda encoded, by=1: seen.append(by) or decode(encoded, by))
    picture = jpeg(image(256, 256))
    for scale, reduction in ((1.0, 8), (0.49, 4), (0.24, 2), (0.06, 1)):
        crop = {"name": "random_resized_crop", "scale": [scale, scale], "ratio": [1, 1], "reduced_decoding": True}
        draw_decoded = build(crop, size=32).decode(picture)
        assert draw_decoded.shape == (3, 32, 32)
        assert seen.pop() == reduction
    build({"name": "random_resized_crop", "scale": [1, 1]}, size=32).decode(picture)
    eval_transform(Preprocess(size=32)).decode(picture)
    assert seen == [1, 1]


@pytest.mark.parametrize("reduced", [False, True])
def test_an_image_is_planned_as_it_is_decoded(reduced):
    encoded = jpeg(image(300, 420))
    crop = {"name": "random_resized_crop", "reduced_decoding": reduced}
    transform = build(crop, {"name": "horizontal_flip"}, {"name": "lighting"}, {"name": "horizontal_flip", "p": 0.3})
    assert transform.plannable
    for seed in range(20):
        seed_generators(seed, "augment")
        square, shift = transform.decode(encoded), transform.draw_shift()
        seed_generators(seed, "augment")
        plan = transform.plan(encoded)
        assert torch.equal(plan.shift, shift)
        assert torch.equal(transform.decode_planned(encoded, plan), square)


def test_reduced_decoding_leaves_other_formats_whole(noise_png):
    encoded = noise_png(1, (64, 64))
    crop = {"name": "random_resized_crop"}
    seed_generators(5, "augment")
    expected = build(crop).decode(encoded)
    seed_generators(5, "augment")
    assert torch.equal(build(crop | {"reduced_decoding": True}).decode(encoded), expected)
