"""Training on the GPU: as on the CPU, under mixed precision, continued after a stop, and by several processes."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from tests.gpu.conftest import OBJECTIVES, distance, only_cpu

from distillery.cluster.signals import Stopped
from distillery.training.speed import Speed

every_objective = pytest.mark.parametrize("run", OBJECTIVES)


def on_cpu(arena, run, **machine):
    with only_cpu():
        return arena.weights(run, "on-cpu", **machine)


@every_objective
def test_float32_is_that_of_the_cpu(arena, run, report, device):
    expected, expected_rows = on_cpu(arena, run)
    exact, rows = arena.weights(run, "on-gpu", speed=Speed(tf32="off"))
    rounded, _ = arena.weights(run, "on-gpu-tf32", speed=Speed(tf32="on"))
    record = json.loads((arena.results.with_name("on-gpu") / f"tiny/{run}/seed0/run.json").read_text())
    assert (record["sessions"][0]["device"] == "cpu") == (device.type == "cpu")
    off = abs(rows[0]["train_loss"] - expected_rows[0]["train_loss"]) / abs(expected_rows[0]["train_loss"])
    report(weights_differ=distance(exact, expected), loss_differs=off, with_tf32=distance(rounded, expected))
    assert off < 1e-3
    assert distance(exact, expected) < 1e-3
    assert distance(rounded, expected) < 5e-2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@every_objective
def test_mixed_precision_begins_at_the_loss_of_float32_and_stays_finite(arena, run, precision, report):
    """With batches of the whole set, an epoch's loss is that of its only step (of BAKE's two)."""
    arena.recipe(batch=36, epochs=3)
    _, expected = arena.weights(run, "full")
    arena.recipe(batch=36, epochs=3, precision=precision)
    weights, rows = arena.weights(run, "mixed")
    off = abs(rows[0]["train_loss"] - expected[0]["train_loss"]) / abs(expected[0]["train_loss"])
    report(first_loss_differs=off, last_loss=rows[-1]["train_loss"], last_in_float32=expected[-1]["train_loss"])
    assert weights.isfinite().all()
    assert all(math.isfinite(row["train_loss"]) for row in rows)
    assert off < 5e-2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("objective", ["kd: {}", "rkd: {}"])
def test_a_bank_teaches_what_the_live_teacher_teaches(arena, objective, precision):
    arena.recipe(epochs=2, precision=precision)
    line = f"model: cifar_resnet8, recipe: gpu, objective: {{ce: {{}}, {objective}}}, teacher:"
    runs = f"    live: {{{line} big}}\n    stored: {{{line} {{run: big, answers: bank}}}}\n"
    arena.edit("  tables:", f"{runs}  tables:")
    assert bytes_of(arena.make("stored")) == bytes_of(arena.make("live"))


def bytes_of(folder):
    return {name: sha256((folder / name).read_bytes()).hexdigest() for name in ("weights.safetensors", "history.csv")}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@every_objective
def test_stopped_and_continued_ends_with_the_same_bytes(arena, run, precision, stop_after, monkeypatch, device):
    arena.recipe(epochs=2, precision=precision)
    straight = bytes_of(arena.make(run, results="straight"))
    stop_after(5)
    with pytest.raises(Stopped, match="SIGTERM"):
        arena.make(run, results="stopped")
    monkeypatch.undo()
    [checkpoint] = (arena.folder / "stopped" / "work").rglob("checkpoint.pt")
    scaler = torch.load(checkpoint, weights_only=True)["scaler"]
    assert (scaler is not None) == (precision == "16-mixed" and device.type == "cuda")
    assert scaler is None or scaler["scale"] > 0
    folder = arena.make(run, results="stopped")
    assert len(json.loads((folder / "run.json").read_text())["sessions"]) == 2
    assert bytes_of(folder) == straight


@pytest.mark.parametrize("run", ["ce", "kd"])
def test_a_batch_in_parts_is_that_of_the_cpu(arena, run, report):
    arena.recipe(batch=32)
    expected, _ = on_cpu(arena, run, device_batch=4)
    found, _ = arena.weights(run, "on-gpu", device_batch=4, speed=Speed(tf32="off"))
    report(weights_differ=distance(found, expected))
    assert distance(found, expected) < 1e-3


# What a GPU takes by default, or may be told to take; each beside the same run without any.
PLAIN = Speed(channels_last="off", fused="off", tf32="off", teacher="plain")
CHOICES = {
    "default": Speed(),
    "channels_last": replace(PLAIN, channels_last="on"),
    "fused": replace(PLAIN, fused="on"),
    "tf32": replace(PLAIN, tf32="on"),
    "half": replace(PLAIN, teacher="half"),
    "folded": replace(PLAIN, teacher="folded"),
    "together": Speed(channels_last="on", fused="on", tf32="on", teacher="folded"),
    "compiled": replace(PLAIN, compile="both"),
}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_of_the_machine_changes_no_more_than_rounding(arena, choice, precision, report, device):
    if choice == "compiled" and device.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on CPUs")
    arena.recipe(epochs=2, precision=precision)
    expected, before = arena.weights("kd", "plain", speed=PLAIN)
    found, rows = arena.weights("kd", choice, speed=CHOICES[choice])
    taken = json.loads((arena.results.with_name(choice) / "tiny/kd/seed0/run.json").read_text())["sessions"][0]["speed"]
    off = max(abs(one["train_loss"] / other["train_loss"] - 1) for one, other in zip(rows, before, strict=True))
    report(weights_differ=distance(found, expected), loss_differs=off, **taken)
    on_gpu, mixed = device.type == "cuda", precision != "32-true"
    assert taken["compile"] == ("both" if choice == "compiled" else "off")
    assert (taken["fused"] == "on") == (choice in ("fused", "together") or (choice == "default" and on_gpu))
    kinds = {"together": "folded", "folded": "folded", "half": "half" if mixed else "plain"}
    assert taken["teacher"] == kinds.get(choice, "half" if choice == "default" and on_gpu and mixed else "plain")
    if choice == "half":
        assert bytes_of(arena.results.with_name(choice) / "tiny/kd/seed0") == bytes_of(
            arena.results.with_name("plain") / "tiny/kd/seed0"
        )
    assert off < (3e-2 if mixed else 1e-2)
    assert distance(found, expected) < 5e-2


@pytest.mark.parametrize("choice", ["default", "together"])
def test_stopped_and_continued_with_the_same_choices_ends_with_the_same_bytes(arena, choice, stop_after, monkeypatch):
    arena.recipe(epochs=2, precision="bf16-mixed")
    speed = CHOICES[choice]
    straight = bytes_of(arena.make("kd", results="straight", speed=speed))
    stop_after(5)
    with pytest.raises(Stopped, match="SIGTERM"):
        arena.make("kd", results="stopped", speed=speed)
    monkeypatch.undo()
    assert bytes_of(arena.make("kd", results="stopped", speed=speed)) == straight


@pytest.mark.parametrize("optimizer", ["sgd, momentum: 0.9", "adamw"])
def test_a_fused_optimizer_scales_float16_back_itself(arena, optimizer, report):
    name, _, rest = optimizer.partition(", ")
    block = {"name": name, "lr": 0.01, "weight_decay": 1e-4} | ({"momentum": 0.9} if rest else {})
    arena.recipe(precision="16-mixed", optimizer=block)
    expected, _ = arena.weights("kd", "plain", speed=PLAIN)
    found, _ = arena.weights("kd", "fused", speed=CHOICES["fused"])
    report(weights_differ=distance(found, expected))
    assert distance(found, expected) < 1e-2


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_images_in_memory_are_augmented_as_on_the_cpu(arena, mode, device):
    from distillery.data.arrow import ArrowImages
    from distillery.data.loader import SecondView
    from distillery.data.memory import MemoryTraining, squares_of
    from distillery.data.orders import shuffled_order
    from distillery.data.samplers import GlobalBatches
    from distillery.data.transforms import train_transform
    from distillery.experiment.schema.augmentation import HorizontalFlip, RandomCrop

    job = arena.job("ce")
    images, preprocess = ArrowImages(job.data_folder, job.manifest, "train"), job.spec.recipe.preprocess
    crop = RandomCrop(name="random_crop", padding=3, mode=mode)
    transform = train_transform(preprocess, (crop, HorizontalFlip(name="horizontal_flip")))
    found = []
    for where in (torch.device("cpu"), device):
        batches = GlobalBatches(shuffled_order(len(images), 0), len(images), 8)
        loader = MemoryTraining(
            images, transform, batches, 0, squares_of(images, preprocess, where), SecondView(transform)
        )
        found.append([part for batch in loader for part in (batch.images, batch.view)])
        assert all(part.device.type == where.type for part in found[-1])
    assert all(torch.equal(one, other.cpu()) for one, other in zip(*found, strict=True))


def test_batches_are_pinned(arena):
    from distillery.data.arrow import ArrowImages
    from distillery.data.loader import eval_loader
    from distillery.data.transforms import eval_transform

    job = arena.job("ce")
    images = ArrowImages(job.data_folder, job.manifest, "train")
    pinned = torch.cuda.is_available()
    for workers in (0, 2):
        loader = eval_loader(images, eval_transform(job.spec.recipe.preprocess), 8, workers, 1, 0, pin_memory=pinned)
        assert all(batch.images.is_pinned() == pinned for batch in loader)


@pytest.mark.cuda_only
def test_memory_that_is_too_small_ends_with_one_line(arena, capsys):
    from distillery.cli import main

    arena.recipe(batch=36, preprocess={"size": 256})
    torch.cuda.empty_cache()
    command = ["train", str(arena.experiment), "kd", "--results", str(arena.results), "--workers=0"]
    limit = torch.cuda.memory_reserved() + 2**24
    torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(SystemExit) as end:
            main(command)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert end.value.code == 2
    [line] = [line for line in said.splitlines() if line.startswith("distillery: ")]
    assert "out of memory" in line
    assert "--device-batch" in line
    assert "Traceback" not in said


# --- several processes ------------------------------------------------------------------------------------------------


def launch(arena, run, processes, results="results"):
    """Train by so many processes; the exit code and what was said."""
    command = [sys.executable, "-m", "distillery.cluster.launch", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "distillery", "train", str(arena.experiment), run, "--workers=0", "--threads=1"]
    done = subprocess.run(
        [*command, "--results", str(arena.folder / results)],
        check=False,
        capture_output=True,
        text=True,
        timeout=150,
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    return done.returncode, done.stdout + done.stderr


def launched_weights(arena, run, processes):
    from safetensors.torch import load_file

    arena.job(run, results="launched")  # makes the folder
    code, said = launch(arena, run, processes, "launched")
    assert code == 0, said[-3000:]
    folder = arena.folder / "launched" / "tiny" / run / "seed0"
    assert json.loads((folder / "run.json").read_text())["sessions"][0]["processes"] == processes
    state = load_file(folder / "weights.safetensors")
    return torch.cat([state[name].double().flatten() for name in sorted(state)])


@pytest.mark.parametrize("run", ["kd", "mgd"])
def test_one_process_with_its_backend_is_a_process_without(arena, run, report):
    expected, _ = arena.weights(run, "alone")
    found = launched_weights(arena, run, 1)
    report(weights_differ=distance(found, expected))
    assert distance(found, expected) < 1e-3


@every_objective
@pytest.mark.cuda_only
def test_two_gpus_give_the_result_of_one(arena, run, report):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    arena.recipe(sync_batchnorm=True, drop_last=False)
    expected, _ = arena.weights(run, "alone")
    found = launched_weights(arena, run, 2)
    report(weights_differ=distance(found, expected))
    assert distance(found, expected) < 2e-2


@pytest.mark.cuda_only
def test_more_processes_than_gpus_are_refused_with_one_line(arena, report):
    many = torch.cuda.device_count() + 1
    code, said = launch(arena, "ce", many)
    report(said=next((line for line in said.splitlines() if line.startswith("distillery: ")), said[-500:]))
    assert code == 2
    assert re.search(rf"--nproc-per-node: {many} is more than the GPUs that torch finds here \({many - 1}\)", said)
    assert "Traceback" not in said
