"""The same batches with any number of workers, at any place, without touching anybody's generators."""

import errno
import multiprocessing.util
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from distillery.data import shards
from distillery.data.arrow import ArrowImages
from distillery.data.decode import decode_rgb
from distillery.data.loader import SecondView, _Waits, eval_loader, said_every_minute, train_loader
from distillery.data.orders import ClassPartners, repeated_order, shuffled_order
from distillery.data.prepare import prepare_dataset
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import eval_transform, train_transform
from distillery.errors import UserError, machine_at_fault
from distillery.experiment.schema.augmentation import (
    ColorJitter,
    HorizontalFlip,
    Lighting,
    RandAugment,
    RandomCrop,
    RandomResizedCrop,
    Rotation,
)
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.recipe import Preprocess
from distillery.randomness import seed_generators

PREPROCESS = Preprocess(size=6)
AUGMENT = (RandomCrop(name="random_crop", padding=2), HorizontalFlip(name="horizontal_flip"))


@pytest.fixture
def images(place, monkeypatch):
    monkeypatch.setattr(shards, "IMAGES_PER_SHARD", 8)
    manifest = place.fill(train=11, val=5).prepare()
    return ArrowImages(place.output, manifest, "train")


def loader(images, workers=0, seed=3, order=None, transform=None, view=None, **options):
    order = order or shuffled_order(len(images), seed)
    batches = GlobalBatches(order, len(images), 4, **({"drop_last": False} | options))
    transform = transform or train_transform(PREPROCESS, AUGMENT)
    return train_loader(images, transform, batches, seed, workers, False, view), batches


def epoch(made, number, step=0):
    made[1].start(number, step)
    return list(made[0])


def same(first, second):
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(left[:3], right[:3], strict=True))
        assert (left.shifts is None) == (right.shifts is None)
        assert left.shifts is None or torch.equal(left.shifts, right.shifts)


def test_a_batch_is_bytes_labels_and_ids(images):
    (batch, *_) = epoch(loader(images), 0)
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (4, 3, 6, 6))
    assert (batch.labels.dtype, batch.indices.dtype) == (torch.int64, torch.int64)
    assert batch.labels.tolist() == images.labels[batch.indices].tolist()
    assert batch.indices.tolist() == shuffled_order(len(images), 3)(0)[:4].tolist()
    same([batch.to("cpu", non_blocking=True)], [batch])


@pytest.mark.parametrize(
    "augment",
    [
        AUGMENT,
        (
            RandomResizedCrop(name="random_resized_crop"),
            HorizontalFlip(name="horizontal_flip"),
            Lighting(name="lighting"),
        ),
        (RandomResizedCrop(name="random_resized_crop"), Rotation(name="rotation", degrees=30)),
    ],
)
def test_each_sample_is_what_its_address_says(images, augment):
    transform = train_transform(PREPROCESS, augment)
    for batch in epoch(loader(images, transform=transform), 2):
        for row, index in enumerate(batch.indices.tolist()):
            picture = decode_rgb(images.encoded(index))
            seed_generators(3, "augment", 2, index, 0)
            assert torch.equal(batch.images[row], transform(picture))
            shift = transform.draw_shift()
            assert shift is None if batch.shifts is None else torch.equal(batch.shifts[row], shift)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_any_number_of_workers_gives_the_same_batches_in_every_epoch(images):
    alone = loader(images)
    for workers in (1, 3):
        several = loader(images, workers)
        for number in range(3):
            same(epoch(several, number), epoch(alone, number))


def test_epochs_and_seeds_differ(images):
    made = loader(images)
    first = torch.cat([batch.images for batch in epoch(made, 0)])
    assert not torch.equal(first, torch.cat([batch.images for batch in epoch(made, 1)]))
    assert not torch.equal(first, torch.cat([batch.images for batch in epoch(loader(images, seed=4), 0)]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_start_at_a_step_gives_the_tail_of_the_epoch(images, workers):
    made = loader(images, workers)
    whole = epoch(made, 1)
    same(epoch(made, 1, step=4), whole[4:])


def test_an_epoch_left_in_the_middle_does_not_leak_into_the_next(images):
    expected = epoch(loader(images), 1)
    made = loader(images, workers=2)
    made[1].start(0)
    next(iter(made[0]))
    same(epoch(made, 1), expected)


def test_ranks_and_micro_batches_share_out_the_same_pixels(images):
    whole = epoch(loader(images, drop_last=True), 0)
    parts = [epoch(loader(images, drop_last=True, world_size=2, rank=rank, accumulation=2), 0) for rank in range(2)]
    for step, batch in enumerate(whole):
        pieces = [parts[rank][2 * step + micro].images for micro in range(2) for rank in range(2)]
        assert torch.equal(torch.cat(pieces), batch.images)


def test_a_second_view_is_another_augmentation_and_leaves_the_first_as_it_is(images):
    view = SecondView(train_transform(PREPROCESS, AUGMENT))
    plain, twice, again = (
        epoch(loader(images, workers, view=second), 2) for workers, second in ((0, None), (0, view), (2, view))
    )
    same(plain, twice)
    for one, two, other in zip(plain, twice, again, strict=True):
        assert one.view is None
        assert torch.equal(two.view, other.view)
        assert two.view.shape == two.images.shape
        assert not torch.equal(two.view, two.images)
        lit = two._replace(view_shifts=torch.ones(len(two.labels), 3)).to("cpu")
        assert torch.equal(lit.images, two.images)
        assert lit.view.is_floating_point()


def test_a_second_view_may_be_augmented_in_its_own_way_or_show_an_image_of_the_class(images):
    plain = train_transform(PREPROCESS, ())
    partner = ClassPartners(images.labels, 3)
    unlike = 0
    for own, other in zip(
        epoch(loader(images, transform=plain, view=SecondView(plain)), 1),
        epoch(loader(images, 2, transform=plain, view=SecondView(plain, partner=partner)), 1),
        strict=True,
    ):
        assert torch.equal(own.view, own.images)
        assert torch.equal(other.images, own.images)
        shown = [partner(1, index, 0) for index in other.indices.tolist()]
        assert torch.equal(torch.from_numpy(images.labels[shown]), other.labels)
        for view, index in zip(other.view, shown, strict=True):
            assert torch.equal(view, plain.decode(images.encoded(index)))
        unlike += sum(one != two for one, two in zip(shown, other.indices.tolist(), strict=True))
    assert unlike > 0


def test_copies_of_an_image_are_augmented_each_in_its_own_way(images):
    order = repeated_order(len(images), 0, 11)
    crop = train_transform(PREPROCESS, (RandomResizedCrop(name="random_resized_crop"),))
    drawn = torch.cat([batch.images for batch in epoch(loader(images, order=order, transform=crop), 0)])
    indices = order(0)
    assert len(set(indices.tolist())) == 2
    assert len({image.numpy().tobytes() for image in drawn}) == len(drawn)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_process_keeps_its_generators(images, workers):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    made = loader(images, workers)
    seed_generators(1, "forward", 0)
    before = states()
    made[1].start(0)
    batches = iter(made[0])
    for _ in range(len(made[1])):
        next(batches)
        assert states() == before


def test_workers_outlive_a_warning_to_stop_that_reaches_the_whole_group(images):
    before = set(multiprocessing.active_children())
    made = loader(images, workers=2)
    expected = epoch(loader(images), 0)
    made[1].start(0)
    batches = iter(made[0])
    found = [next(batches)]
    for worker in set(multiprocessing.active_children()) - before:
        for name in ("TERM", "INT", "USR1"):
            # From another process, as a cluster's warnings come; the parent's own word counts.
            subprocess.run(["/bin/sh", "-c", f"kill -{name} {worker.pid}"], check=True)
    same([*found, *batches], expected)


def test_workers_outlive_a_warning_that_reaches_them_at_their_birth(images):
    def warn(_) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(os.getpid(), number)

    made = loader(images, workers=2)
    made[1].start(0)
    # What multiprocessing calls in a new process before anything of ours.
    multiprocessing.util.register_after_fork(made[1], warn)
    same(list(made[0]), epoch(loader(images), 0))


ENDINGS = {
    "after an epoch": "list(train); kept = train",
    "in the middle of an epoch": "kept = iter(train); next(kept)",
    "in the middle of an evaluation": "kept = iter(measure); next(kept)",
    "with an error": "kept = iter(train), iter(measure); next(kept[0]); next(kept[1]); raise ValueError",
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_process_ends_whatever_its_loaders_are_doing(place, ending):
    place.fill(train=11).prepare()
    code = f"""
from pathlib import Path
from distillery.experiment.schema.recipe import Preprocess
from distillery.data.arrow import ArrowImages
from distillery.data.loader import _Waits, eval_loader, said_every_minute, train_loader
from distillery.data.manifest import load_manifest
from distillery.data.orders import shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import eval_transform
folder = Path({str(place.output)!r})
images = ArrowImages(folder, load_manifest(folder), "train")
transform = eval_transform(Preprocess(size=6))
train = train_loader(images, transform, GlobalBatches(shuffled_order(22, 0), 22, 2), 0, 2, False)
measure = eval_loader(images, transform, 2, 2, 1, 0, False, persistent=True)
{ENDINGS[ending]}
"""
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True)
    assert (ended.returncode, "ValueError" in ended.stderr) == ((1, True) if "error" in ending else (0, False))


@pytest.mark.slow
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 1), (7, 0)])
def test_evaluation_sees_every_image_once_in_order(images, world_size, workers):
    transform = eval_transform(PREPROCESS)
    batches = [
        batch
        for rank in range(world_size)
        for batch in eval_loader(images, transform, 4, workers, world_size, rank, pin_memory=False)
    ]
    indices = torch.cat([batch.indices for batch in batches])
    assert indices.tolist() == list(range(len(images)))
    assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels.tolist()
    expected = torch.stack([transform(decode_rgb(images.encoded(index))) for index in range(len(images))])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False])
def test_evaluation_can_keep_its_workers(images, kept):
    before = set(multiprocessing.active_children())
    made = eval_loader(images, eval_transform(PREPROCESS), 4, 1, 1, 0, pin_memory=False, persistent=kept)
    workers = []
    for _ in range(2):
        batches = iter(made)
        workers.append(set(multiprocessing.active_children()) - before)
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(images)))
        del batches
    assert all(workers)
    assert (workers[0] == workers[1]) == kept


def test_more_ranks_than_images_leaves_some_without(images):
    transform = eval_transform(PREPROCESS)
    counts = [
        sum(len(batch.labels) for batch in eval_loader(images, transform, 4, 0, 30, rank, pin_memory=False))
        for rank in range(30)
    ]
    assert sum(counts) == len(images)
    assert set(counts) == {0, 1}


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_of_chosen_images_follows_their_order(images, world_size):
    chosen = np.array([7, 2, 9, 0, 21, 4, 5], dtype=np.int64)
    transform = eval_transform(PREPROCESS)
    found = [
        batch
        for rank in range(world_size)
        for batch in eval_loader(images, transform, 2, 0, world_size, rank, pin_memory=False, indices=chosen)
    ]
    assert torch.cat([batch.indices for batch in found]).tolist() == chosen.tolist()
    assert torch.cat([batch.labels for batch in found]).tolist() == images.labels[chosen].tolist()


@pytest.mark.parametrize(
    "augment",
    [
        (RandomCrop(name="random_crop", padding=4), HorizontalFlip(name="horizontal_flip")),
        (RandomResizedCrop(name="random_resized_crop"), HorizontalFlip(name="horizontal_flip")),
        (Rotation(name="rotation", degrees=20), ColorJitter(name="color_jitter", brightness=0.5)),
        (RandAugment(name="rand_augment", policy="rand-m5"),),
    ],
)
def test_a_teacher_sees_the_same_crop_and_flip_of_the_same_image_at_its_own_size(smooth, augment):
    small, large = Preprocess(size=32), Preprocess(size=64)
    batches = GlobalBatches(shuffled_order(len(smooth), 3), len(smooth), 4, drop_last=False)
    transforms = train_transform(small, augment), train_transform(small, augment, viewer=large)
    made = train_loader(smooth, transforms[0], batches, 3, 0, False, SecondView(*transforms), transforms[1]), batches
    for batch, plain in zip(epoch(made, 0), epoch(loader(smooth, transform=transforms[0]), 0), strict=True):
        same([batch], [plain])  # the student's are what they are without a teacher
        for ours, theirs in ((batch.images, batch.teacher_images), (batch.view, batch.teacher_view)):
            assert theirs.shape[1:] == (3, 64, 64)
            difference = (torch.nn.functional.avg_pool2d(theirs.float(), 2) - ours.float()).abs().mean(dim=(1, 2, 3))
            assert difference.max() < 20
            flipped = (torch.nn.functional.avg_pool2d(theirs.flip(3).float(), 2) - ours.float()).abs()
            assert flipped.mean() > 30


@pytest.fixture
def smooth(tmp_path):
    """Images of one broad slope each, which look alike at any size, and unlike when cut or flipped differently."""
    for split, count in (("train", 4), ("val", 1)):
        for name in ("left", "right"):
            (tmp_path / "raw" / split / name).mkdir(parents=True)
            for index in range(count):
                column, row = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 96))
                pixels = 230 * np.stack([column, row, (column + index * row) / (1 + index)], axis=-1)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "raw" / split / name / f"{index}.png")
    dataset = Dataset(path=str(tmp_path / "raw"))
    return ArrowImages(tmp_path / "out", prepare_dataset("slopes", dataset, tmp_path / "out", workers=1), "train")


def test_a_batch_that_shared_memory_cannot_hold_ends_the_epoch_in_one_line(images, monkeypatch):
    def refuse(_):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    with pytest.raises(UserError, match=r"^/dev/shm has no room for a batch of .* more by --shm-size$"):
        epoch(loader(images, workers=1), 0)


@pytest.mark.parametrize(
    ("met", "said"),
    [
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory"), "No such file or directory"),
        (EOFError(), "EOFError"),
        # As a thread that pins memory passes it on.
        (EOFError("Caught EOFError in pin memory thread for device 0.\nOriginal Traceback\nEOFError"), "EOFError"),
    ],
)
def test_a_worker_that_is_gone_before_its_batch_is_taken_is_said(images, monkeypatch, met, said):
    def detach(_):
        raise met

    # How a batch's memory is asked of the worker that filled it.
    monkeypatch.setattr("multiprocessing.resource_sharer.DupFd.detach", detach)
    with pytest.raises(RuntimeError) as error:
        epoch(loader(images, workers=1), 0)
    assert said in (line := machine_at_fault(error.value))
    assert line.startswith("a process that reads images has ended (DataLoader worker is gone: ")
    assert "\n" not in line


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionResetError, EOFError, OSError])
def test_what_the_system_does_to_a_worker_is_said_without_its_traceback(images, monkeypatch, kind):
    def fail(*_):
        raise kind(errno.EIO, "Input/output error", "train-00000.arrow")

    made = loader(images, workers=1)
    monkeypatch.setattr(images, "encoded", fail)
    with pytest.raises(OSError, match=r"Input/output error.*train-00000\.arrow") as error:
        epoch(made, 0)
    assert "\n" not in str(error.value)
    assert not isinstance(error.value, BrokenPipeError)


def test_a_fault_of_the_program_in_a_worker_keeps_its_traceback(images, monkeypatch):
    def fail(*_):
        raise RuntimeError("size mismatch")

    made = loader(images, workers=1)
    monkeypatch.setattr(images, "encoded", fail)
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*size mismatch") as error:
        epoch(made, 0)
    assert machine_at_fault(error.value) is None


def test_a_long_wait_for_images_is_said(monkeypatch, capsys):
    monkeypatch.setattr("distillery.data.loader.WAIT_SECONDS", 0.05)
    monkeypatch.setattr("distillery.data.loader._waits", _Waits())
    with said_every_minute():
        time.sleep(0.3)
    assert "distillery: waiting for images for " in capsys.readouterr().err
