"""DALI gives what the first loader gives, within what decoders and resizers round."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from distillery.data.arrow import ArrowImages
from distillery.data.loader import train_loader
from distillery.data.orders import partner_order, repeated_order, shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import train_transform
from distillery.errors import UserError
from distillery.experiment.schema.augmentation import Augmentation
from distillery.experiment.schema.recipe import Preprocess
from distillery.randomness import seed_generators

pytest.importorskip("nvidia.dali", reason="the extra `dali` is for Linux")
from distillery.data import dali
from distillery.data.dali import DaliLoader

CROP = {"name": "random_resized_crop"}
FLIP = {"name": "horizontal_flip"}
JITTER = {"name": "color_jitter", "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
CPU = torch.device("cpu")


def picture(number, width, height, mode="RGB"):
    generator = np.random.Generator(np.random.Philox(key=number))
    small = Image.fromarray(generator.integers(0, 256, (6, 7, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """JPEGs and PNGs of many sizes, and of every kind that DALI is not asked to decode."""
    from distillery.data.prepare import prepare_dataset
    from distillery.experiment.schema.dataset import Dataset

    folder = tmp_path_factory.mktemp("dali")
    turned = Image.Exif()
    turned[0x0112] = 6  # an orientation, which both ignore
    kinds = [
        encode(picture(1, 61, 47), "jpeg", quality=95),
        encode(picture(2, 80, 40), "jpeg", quality=90, progressive=True),
        encode(picture(3, 33, 70, "L"), "jpeg", quality=95),
        encode(picture(4, 50, 50), "png"),
        encode(picture(5, 64, 48, "L"), "png"),
        encode(picture(6, 40, 44, "CMYK"), "jpeg", quality=95),
        encode(picture(7, 40, 44).convert("P"), "png"),
        encode(picture(8, 40, 44, "RGBA"), "png"),
        encode(picture(9, 40, 44), "gif"),
        encode(picture(10, 90, 90), "jpeg", quality=95, subsampling="4:4:4"),
        encode(picture(11, 31, 57), "jpeg", quality=95, exif=turned),
    ]
    for split in ("train", "val"):
        for name in ("ape", "bee"):
            (folder / "raw" / split / name).mkdir(parents=True)
            for number, content in enumerate(kinds if name == "ape" else kinds[:4]):
                suffix = "gif" if content[:3] == b"GIF" else "png" if content[:4] == b"\x89PNG" else "jpg"
                (folder / "raw" / split / name / f"{number:02d}.{suffix}").write_bytes(content)
    manifest = prepare_dataset("toy", Dataset(path=str(folder / "raw")), folder / "toy", 1)
    return ArrowImages(folder / "toy", manifest, "train")


def build(images, kind, *operations, order=None, workers=0, seed=3, size=16, **options):
    preprocess = {name: options.pop(name) for name in ("resize", "interpolation", "rule") if name in options}
    parsed = TypeAdapter(tuple[Augmentation, ...]).validate_python(operations)
    transform = train_transform(Preprocess(size=size, **preprocess), parsed)
    order = order or shuffled_order(len(images), seed)
    batches = GlobalBatches(order, len(order(0)), 4, **({"drop_last": False} | options))
    if kind == "dali":
        return DaliLoader(images, transform, batches, seed, max(workers, 1), CPU), batches
    return train_loader(images, transform, batches, seed, workers, pin_memory=False), batches


def epoch(made, number=0, step=0):
    made[1].start(number, step)
    return list(made[0])


def check_equal(first, second):
    assert len(first) == len(second) > 0
    for left, right in zip(first, second, strict=True):
        for one, other in zip(left, right, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def check_close(found, expected, mean=0.5, most=12):
    assert len(found) == len(expected) > 0
    for left, right in zip(found, expected, strict=True):
        assert torch.equal(left.indices, right.indices)
        assert torch.equal(left.labels, right.labels)
        assert (left.shifts is None) == (right.shifts is None)
        assert left.shifts is None or torch.equal(left.shifts, right.shifts)
        assert (left.images.dtype, left.images.shape) == (torch.uint8, right.images.shape)
        difference = (left.images.float() - right.images.float()).abs()
        assert difference.mean() < mean
        assert difference.max() <= most


AUGMENTATIONS = {
    "crop and flip": [CROP, FLIP],
    "bicubic": [CROP | {"interpolation": "bicubic"}, FLIP],
    "nearest": [CROP | {"interpolation": "nearest"}],
    "as BAKE": [CROP | {"rule": "bake"}, FLIP, {"name": "lighting"}],
    "as DALI": [CROP | {"rule": "dali"}, FLIP],
    "as label-smoothed KD on CUB": [
        CROP | {"scale": [0.2, 1], "ratio": [0.8, 1.25]},
        FLIP,
        {"name": "rotation", "degrees": 45},
        {"name": "grayscale", "p": 0.2},
        JITTER,
    ],
    "as CIFAR": [{"name": "random_crop", "padding": 2}, FLIP],
    "nothing": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_it_agrees_with_the_first_loader(images, name):
    operations = AUGMENTATIONS[name]
    for number in range(2):
        found, expected = (epoch(build(images, kind, *operations), number) for kind in ("dali", "torch"))
        # Nearest pixels may tip over to their neighbours, and rotation and jitter can widen a difference.
        check_close(found, expected, *{"nearest": (3, 255), "as label-smoothed KD on CUB": (1, 60)}.get(name, ()))


@pytest.mark.parametrize("rule", ["torchvision", "bake"])
def test_it_agrees_on_the_centre(images, rule):
    found, expected = (epoch(build(images, kind, size=15, resize=20, rule=rule)) for kind in ("dali", "torch"))
    check_close(found, expected)


def test_rand_augment_draws_alike(images):
    """Its operations may magnify a level's difference, so the share of pixels that differ much is what is small."""
    found, expected = (epoch(build(images, kind, CROP, {"name": "rand_augment"})) for kind in ("dali", "torch"))
    for left, right in zip(found, expected, strict=True):
        assert ((left.images.float() - right.images.float()).abs() > 8).float().mean() < 0.03


@pytest.mark.parametrize("threads", [1, 3])
def test_any_number_of_threads_and_any_start_give_the_same_bytes(images, threads):
    alone = epoch(build(images, "dali", CROP, FLIP), 1)
    made = build(images, "dali", CROP, FLIP, workers=threads)
    check_equal(epoch(made, 1), alone)
    check_equal(epoch(made, 1, step=2), alone[2:])


def test_an_epoch_left_in_the_middle_does_not_leak_into_the_next(images):
    made = build(images, "dali", CROP, FLIP)
    made[1].start(0)
    next(iter(made[0]))
    check_equal(epoch(made, 1), epoch(build(images, "dali", CROP, FLIP), 1))


def test_ranks_and_micro_batches_share_out_the_same_pixels(images):
    whole = epoch(build(images, "dali", CROP, drop_last=True))
    parts = [
        epoch(build(images, "dali", CROP, drop_last=True, world_size=2, rank=rank, accumulation=2)) for rank in range(2)
    ]
    for step, batch in enumerate(whole):
        pieces = [parts[rank][2 * step + micro].images for micro in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(pieces), batch.images)


@pytest.mark.parametrize("kind", ["repeated", "partners"])
def test_every_sampler_feeds_it(images, kind):
    order = repeated_order(len(images), 0, 3) if kind == "repeated" else partner_order(images.labels, 0, 1)
    found, expected = (epoch(build(images, loader, CROP, FLIP, order=order)) for loader in ("dali", "torch"))
    check_close(found, expected)


def test_a_run_may_change_loaders_at_any_step(images):
    first, second = build(images, "torch", CROP, FLIP), build(images, "dali", CROP, FLIP)
    mixed = epoch(first)[:2] + epoch(second, step=2)
    check_close(mixed, epoch(build(images, "torch", CROP, FLIP)))


def test_only_jpegs_and_plain_pngs_go_to_dali(images):
    loader, batches = build(images, "dali", CROP)
    batches.start(0)
    orders = [loader._place_order(samples) for samples in batches]
    fed = {sample.index: feed for order in orders for sample, feed in zip(order.samples, order.fed, strict=True)}
    assert [index for index in range(11) if not fed[index]] == [5, 6, 7, 8]


def test_the_process_keeps_its_generators(images):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    made = build(images, "dali", CROP, FLIP)
    seed_generators(1, "forward", 0)
    before = states()
    made[1].start(0)
    for _ in made[0]:
        assert states() == before


def test_without_dali_one_line_says_what_to_install(images, monkeypatch):
    monkeypatch.setattr(dali.importlib.util, "find_spec", lambda name: None if name == "nvidia.dali" else object())
    with pytest.raises(
        UserError, match=r"--loader: 'dali' needs NVIDIA DALI, .* install distillery\[dali\] or use torch"
    ):
        build(images, "dali", CROP)
