"""A bank of answers in the workflow: made once for all students, gone after the last, and no reason to train again."""

import re
import shutil

import pytest

pytestmark = pytest.mark.slow

BANK = "teacher: {run: big, answers: bank}, crops: 2"


@pytest.fixture
def banked(made):
    """The tiny experiment, whose teacher was trained and whose student is to learn from a bank with two seeds."""
    for old, new in (
        ("teacher: big", BANK),
        ("    small: {model: cifar_resnet8, recipe: tiny}\n", ""),
        ("[big, small, taught], columns: [top1, nll, agreement, params]", "[taught], columns: [top1]"),
        ("taught: {", "taught: {seeds: [0, 1], "),
    ):
        made.replace("config/tiny.yaml", old, new)
    return made


def named(planned):
    return {re.sub(r"\(bank [0-9a-f]{16}\)", "(bank)", message) for message in planned if "tiny/" in message}


def test_one_bank_is_made_for_all_students_lives_as_long_as_they_need_it_and_trains_nobody_again(banked):
    everything = ("--config", "experiments=tiny")
    students = [f"results/tiny/taught/seed{seed}/weights.safetensors" for seed in (0, 1)]
    jobs = [message for message in banked.planned(*students) if "answers" in message]
    assert named(jobs) == {"store the answers of tiny/big (bank)"}
    assert len(jobs) == 1

    result = banked.run("snakemake", *students, "--cores", "2")
    assert result.returncode == 0, result.stdout
    assert not list((banked.folder / "results/tiny/big/seed0").glob("bank/*"))
    assert banked.planned(*students) == set()

    # One student more: the bank is made again, and nobody else learns from it anew.
    banked.replace(
        "config/tiny.yaml",
        "  tables:",
        f"    more: {{model: cifar_resnet8, recipe: tiny, {BANK}, objective: {{kd: {{}}}}}}\n  tables:",
    )
    planned = named(banked.planned(*everything))
    assert {"store the answers of tiny/big (bank)", "train tiny/more, seed 0"} <= planned
    assert not [message for message in planned if message.startswith("train tiny/taught")]

    # Whoever is trained anew for no reason that a configuration knows makes what it needs.
    result = banked.run(
        "snakemake", "--forcerun", "train_student", "--cores", "2", "results/tiny/taught/seed1/run.json"
    )
    assert result.returncode == 0, result.stdout
    assert "big's answers: view 2 of 2" in banked.read("logs/tiny/taught/seed1/train.log")
    shutil.rmtree(banked.folder / "results/tiny/big/seed0/bank")

    # A change of another student is not overlooked for that.
    banked.replace("config/tiny.yaml", "kd: {weight: 0.5}}}", "kd: {weight: 0.4}}}")
    assert {message for message in named(banked.planned(*everything)) if message.startswith("train")} == {
        "train tiny/more, seed 0", "train tiny/taught, seed 0", "train tiny/taught, seed 1",
    }  # fmt: skip

    # Nor a change of the teacher.
    banked.replace("config/tiny.yaml", "cifar_resnet14, recipe: tiny", "cifar_resnet14, recipe: tiny, clip_norm: 1.0")
    assert {message for message in named(banked.planned(*everything)) if message.startswith(("train", "store"))} == {
        "train tiny/big, seed 0, a teacher", "store the answers of tiny/big (bank)",
        "train tiny/more, seed 0", "train tiny/taught, seed 0", "train tiny/taught, seed 1",
    }  # fmt: skip


def test_a_bank_that_is_kept_is_used_again(banked):
    target = "results/tiny/taught/seed0/weights.safetensors"
    result = banked.run("snakemake", target, "--notemp", "--cores", "2")
    assert result.returncode == 0, result.stdout
    (folder,) = (banked.folder / "results/tiny/big/seed0/bank").glob("*")
    assert sorted(path.name for path in folder.glob("[!.]*")) == ["00000.npy", "00001.npy", "bank.json"]
    planned = banked.planned("results/tiny/taught/seed1/weights.safetensors", "--notemp")
    assert named(planned) == {"train tiny/taught, seed 1"}
