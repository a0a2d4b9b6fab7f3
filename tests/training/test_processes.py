"""Whole runs on several real processes (gloo): stopped, killed and continued."""

import csv
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.conftest import RECIPE
from tests.training.processes import kill_one_at, make_in_processes, warn_all_at
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from distillery.cluster.signals import StopSignal
from distillery.distill.losses.cross_entropy import CrossEntropy
from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Objective
from distillery.experiment.schema.recipe import Recipe
from distillery.training import build
from distillery.training.answers import record_answers
from distillery.training.checkpoint import CheckpointFolder
from distillery.training.epoch_sums import EpochSums
from distillery.training.run import make_run

pytestmark = pytest.mark.slow


def written(job):
    return {name: (job.folder / name).read_bytes() for name in ("weights.safetensors", "history.csv")}


@pytest.fixture
def straight(workplace):
    job = workplace.job(results="straight")
    make_in_processes(job, 2)
    return written(job)


def test_warned_inside_an_epoch_two_processes_end_with_the_same_bytes(workplace, straight):
    for step in (2, 4):
        job = workplace.job(results=f"warned{step}")
        make_in_processes(job, 2, warn_all_at(step))
        assert not (job.folder / "run.json").exists()
        make_in_processes(job, 2)
        assert written(job) == straight


def test_after_one_of_two_processes_was_killed_the_bytes_are_the_same(workplace, straight):
    job = workplace.job(checkpoint_seconds=0.0)
    with pytest.raises(ProcessExitedException):
        make_in_processes(job, 2, kill_one_at(3))
    assert list((workplace.results / "work").rglob("checkpoint.pt"))
    time.sleep(0.1)
    make_in_processes(job, 2)
    assert written(job) == straight


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_continued_by_another_number_of_processes_an_epoch_counts_every_image_once(workplace, straight, first, then):
    job = workplace.job()
    make_in_processes(job, first, warn_all_at(2))
    make_in_processes(job, then)
    both = (written(job), straight)
    first_row, straight_row = (next(csv.DictReader(io.StringIO(files["history.csv"].decode()))) for files in both)
    # Batch norm sees half the images on each of two processes, so the numbers themselves differ a little.
    assert float(first_row["train_loss"]) == pytest.approx(float(straight_row["train_loss"]), rel=0.2)
    assert (float(first_row["train_top1"]) * 32 / 100).is_integer()  # 4 steps of 8 images


def test_one_process_with_nan_leaves_a_step_out_of_all(workplace, monkeypatch):
    original = CrossEntropy.forward

    def forward(self, inputs):
        value = original(self, inputs)
        if os.environ["RANK"] == "1" and inputs.epoch == 0.5:
            return value * float("nan")  # its gradient is NaN, and so that of all
        if os.environ["RANK"] == "1" and inputs.epoch == 1.0:
            return value + float("nan")  # its gradient is not
        return value

    monkeypatch.setattr(CrossEntropy, "forward", forward)
    workplace.edit_recipe("on_nan: skip")
    job, stopped = workplace.job(), workplace.job(results="stopped")
    make_in_processes(job, 2)
    skipped = json.loads((job.folder / "run.json").read_text())["skipped"]
    assert [(each["epoch"], each["step"]) for each in skipped] == [(1, 3), (2, 1)]
    assert "in another process" in skipped[0]["what"]
    make_in_processes(stopped, 2, warn_all_at(3))
    make_in_processes(stopped, 2)
    assert written(stopped) == written(job)


def test_a_row_of_the_history_is_the_mean_over_the_images_of_all_processes(workplace, monkeypatch, tmp_path):
    original = EpochSums.add

    def add(self, step, values, logits_BC, target, *more):
        right = int((logits_BC.argmax(dim=1) == target).sum())
        with (tmp_path / f"rank{os.environ['RANK']}").open("a") as file:
            file.write(f"{len(logits_BC)} {values['loss'].item()} {right}\n")
        original(self, step, values, logits_BC, target, *more)

    monkeypatch.setattr(EpochSums, "add", add)
    workplace.edit_recipe("epochs: 1")
    job = workplace.job()
    make_in_processes(job, 2)
    ranks = [np.loadtxt(tmp_path / f"rank{rank}") for rank in (0, 1)]
    images, losses, right = np.concatenate(ranks).T
    (row,) = csv.DictReader(io.StringIO(written(job)["history.csv"].decode()))
    assert float(row["train_loss"]) == pytest.approx((images * losses).sum() / images.sum(), rel=1e-6)
    assert float(row["train_top1"]) == pytest.approx(100 * right.sum() / images.sum())
    assert abs(ranks[0][:, 1].mean() - ranks[1][:, 1].mean()) > 1e-3  # or one of them would do


def test_a_nan_in_one_process_ends_all_of_them_in_their_line(workplace, monkeypatch, tmp_path):
    forward, whole = CrossEntropy.forward, make_run

    def broken(self, inputs):
        value = forward(self, inputs)
        return value + float("nan") if os.environ["RANK"] == "1" and inputs.epoch == 1.0 else value

    def noted(job):
        try:
            whole(job)
        except UserError as error:
            (tmp_path / os.environ["RANK"]).write_text(str(error))

    monkeypatch.setattr(CrossEntropy, "forward", broken)
    monkeypatch.setattr("tests.training.processes.make_run", noted)
    make_in_processes(workplace.job(), 2)
    first, second = ((tmp_path / rank).read_text() for rank in "01")
    assert "the loss is NaN or infinite (step 4 or before, in another process) in epoch 2" in first
    assert "the loss is NaN or infinite (step 1: ce nan; sample ids" in second


def stop_workers_of_one_at(step):
    """The worker that loads for the second process hangs, as on a dead disk; soon all are asked to stop."""

    def event(rank, taken):
        if taken == step:
            for worker in multiprocessing.active_children() if rank == 1 else []:
                os.kill(worker.pid, signal.SIGSTOP)
            threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    return event


def test_a_signal_ends_the_wait_for_data_of_one_of_two_processes(workplace, straight):
    # Once the worker is stopped, what it had loaded ahead is still there: two batches.
    workplace.edit_recipe("epochs: 2")
    job = workplace.job(results="hanging", workers=1, loader="torch")
    begun = time.monotonic()
    make_in_processes(job, 2, stop_workers_of_one_at(1))
    assert time.monotonic() - begun < 30
    (checkpoint,) = (job.results / "work").rglob("checkpoint.pt")
    state, _ = CheckpointFolder(checkpoint.parent).load()
    assert 1 <= state["train_state"]["step"] <= 3
    make_in_processes(job, 2)
    assert written(job) == straight


LINE = "{model: cifar_resnet8, recipe: tiny, teacher: big, objective: %s}"
NEVER_USED = "layer3.0.never_used.weight"


@pytest.mark.parametrize(
    "objective",
    ["{mgd: {ignore: [1, 2], loss_factor: 100}}", "{overhaul: {ignore: [2]}}", "{crd: {negatives: 9}}", "{ce: {}}"],
)
def test_weights_without_gradient_stay_as_they_began_on_any_number_of_processes(workplace, monkeypatch, objective):
    original = build.begin_network

    def begin(job):
        network = original(job)
        if objective == "{ce: {}}":
            network.layer3[0].never_used = torch.nn.Linear(3, 3)
        return network

    line = LINE % objective if "ce" not in objective else LINE.replace("teacher: big, ", "") % objective
    workplace.edit("  tables:", f"    half: {line}\n  tables:")
    workplace.edit_recipe("sync_batchnorm: false")
    workplace.make("big")
    monkeypatch.setattr(build, "begin_network", begin)
    alone, together = workplace.job("half"), workplace.job("half", results="together")
    make_in_processes(alone, 1)
    make_in_processes(together, 2)
    weights = [load_file(job.folder / "weights.safetensors") for job in (alone, together)]
    still = [name for name in weights[0] if torch.equal(weights[0][name], weights[1][name])]
    gone = {"{mgd": "layer2.0.conv1.weight", "{ove": "layer3.0.conv1.weight", "{crd": "fc.weight"}
    assert gone.get(objective[:4], NEVER_USED) in still
    assert "conv1.weight" not in still


TERM = """from typing import ClassVar

from torch import nn

from distillery.distill.term import Term
from distillery.experiment.schema.objective import Needs, TermOptions


class HalfOptions(TermOptions):
    needs: ClassVar[Needs] = Needs(student={"logits"})
    implementation: ClassVar[str] = "plugins.half:Half"


class Half(Term):
    def setup(self, context):
        self.used, self.later, self.never = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, inputs):
        layer = self.later if inputs.epoch >= 1 else self.used
        return layer(inputs.student.logits_BC).square().mean()


TERMS = {"partly": HalfOptions}
"""


def test_parameters_that_a_term_does_not_use_are_named_and_change_nothing_on_any_number_of_processes(workplace):
    (workplace.folder / "plugins").mkdir()
    (workplace.folder / "plugins" / "half.py").write_text(TERM)
    workplace.edit(
        "  tables:", "    half: {model: cifar_resnet8, recipe: tiny, objective: {ce: {}, partly: {}}}\n  tables:"
    )
    # Of one process, two micro-batches a step: its batch norms see what those of two processes do.
    alone, together = workplace.job("half", device_batch=4), workplace.job("half", results="together")
    make_in_processes(alone, 1)
    make_in_processes(together, 2)
    records = [json.loads((job.folder / "run.json").read_text()) for job in (alone, together)]
    for record in records:
        (alarm,) = [said for said in record["alarms"] if said["alarm"] == "no_gradient"]
        assert alarm["line"].startswith(
            "the term partly leaves 4 of its 6 parameters without a gradient, later.weight for"
        )
    weights = [load_file(job.folder / "weights.safetensors") for job in (alone, together)]
    for name, value in weights[0].items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)


def in_sums():
    """Every term there is, in as few objectives as may be: each term joins the first that it goes with."""
    recipe = Recipe.model_validate(yaml.safe_load(RECIPE))
    sums: list[dict] = []
    for name in TERMS:
        for terms in [*sums, {}]:
            wider = terms | {name: {"weight": 1.0e-3} | OPTIONS.get(name, {})}
            try:
                Objective.model_validate(wider).check(recipe)
            except UserError:
                continue
            if terms in sums:
                sums.remove(terms)
            sums.append(wider)
            break
    return sums


# What small images, few of them, and one objective ask for.
OPTIONS = {"kd": {"temperature": "learned"}, "crd": {"negatives": 9}, "mgd": {"update_every": 1}, "ofa": {"heads": 1}}
SUMS = in_sums()


def test_every_term_is_in_one_of_the_sums():
    assert {name for terms in SUMS for name in terms} == {*TERMS}
    assert len(SUMS) <= 4


@pytest.mark.parametrize("terms", SUMS, ids=lambda terms: next(reversed(terms)))
def test_whatever_its_terms_remember_a_run_of_two_processes_is_continued_with_the_same_bytes(workplace, terms):
    line = json.dumps({"model": "cifar_resnet8", "recipe": "tiny", "teacher": "big", "objective": terms})
    workplace.edit("  tables:", f"    taught2: {line}\n  tables:")
    workplace.make("big")
    straight, job, then = (workplace.job("taught2", results=place) for place in ("straight", "results", "then"))
    make_in_processes(straight, 2)
    # All are warned inside an epoch, later one is killed; what is left is taken by two again, or by one.
    killed = workplace.job("taught2", checkpoint_seconds=0.0)
    make_in_processes(job, 2, warn_all_at(2))
    with pytest.raises(ProcessExitedException):
        make_in_processes(killed, 2, kill_one_at(4))
    shutil.copytree(job.results / "work", then.results / "work")
    make_in_processes(job, 2)
    assert written(job) == written(straight)
    make_in_processes(then, 1)
    ours, theirs = (np.genfromtxt(each.folder / "history.csv", delimiter=",", names=True) for each in (then, straight))
    # Batch norm sees whole batches where there were halves.
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=0.2)


def test_each_of_two_processes_reads_its_own_rows_of_a_bank(workplace):
    workplace.make("big")
    bank = "teacher: {run: big, answers: bank}"
    twin = "twin: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {weight: 0.5}, kd: {weight: 0.5}}}"
    workplace.edit("teacher: big,", f"{bank},")
    workplace.edit(", temperature: 2", "")
    workplace.edit("  tables:", f"    {twin}\n  tables:")
    job = workplace.job("taught")
    with pytest.raises(
        ProcessRaisedException, match="2 processes cannot record it together; first make it with: distill"
    ):
        make_in_processes(job, 2)
    record_answers(job, StopSignal())
    make_in_processes(job, 2)
    make_in_processes(workplace.job("twin"), 2)
    histories = (workplace.job(run).folder / "history.csv" for run in ("taught", "twin"))
    stored, live = (np.genfromtxt(history, delimiter=",") for history in histories)
    np.testing.assert_allclose(stored, live, rtol=1e-3)
