"""Troubles of a machine while a run is made: one line, or it goes on rightly; the next start gives the same bytes."""

import multiprocessing
import os
import signal
import subprocess
import time

import pytest

from distillery.cli import main
from distillery.cluster.run_lock import RunLock
from distillery.training.metric_logger import MetricLogger


def train(workplace, *more, results=None):
    place = ["--results", str(results or workplace.results), "--threads", "1"]
    return ["train", str(workplace.experiment), "small", *place, *(more or ("--workers", "0"))]


def done(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code == 0


def written(results):
    folder = results / "tiny" / "small" / "seed0"
    return [(folder / name).read_bytes() for name in ("weights.safetensors", "history.csv")]


@pytest.fixture
def disk(workplace, tmp_path):
    """The results on a disk of their own, of 1 MB, which can be mounted anew."""

    def mount(options, *more):
        words = ["mount", "-t", "tmpfs", "-o", options, *more, "tmpfs", str(place)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    place = tmp_path / "disk"
    place.mkdir()
    if not mount("size=1m"):
        pytest.skip("may not mount a disk")
    try:
        subprocess.run(["cp", "-r", f"{workplace.results}/.", str(place)], check=True)
        yield place, mount
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full_is_said_and_the_run_goes_on_when_there_is_room(workplace, disk, refused):
    place, _ = disk
    (place / "filler").write_bytes(bytes(2**20 - 2**17))
    assert "No space left on device" in refused(*train(workplace, results=place))
    (place / "filler").unlink()
    assert not list(place.rglob(".*"))
    assert done(train(workplace, results=place))
    workplace.make()
    assert written(place) == written(workplace.results)


@pytest.mark.parametrize(
    "words", [["train", "PAGE", "small", "--workers", "0"], ["tabulate", "PAGE", "--partial"], ["prepare", "tiny"]]
)
def test_a_read_only_disk_is_said(workplace, disk, refused, words):
    place, mount = disk
    assert mount(
        "remount,ro",
    )
    if words[0] == "prepare":
        words = [*words, "--config-dir", str(workplace.experiment.parent)]
    words = [str(workplace.experiment) if word == "PAGE" else word for word in words]
    assert "Read-only file system" in refused(*words, "--results", str(place))
    assert mount("remount,rw")
    assert done([*words, "--results", str(place)])


def test_a_worker_that_the_kernel_kills_ends_the_run_in_one_line(workplace, refused, monkeypatch):
    original = MetricLogger.step

    def step(self, *arguments):
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)
        return original(self, *arguments)

    monkeypatch.setattr(MetricLogger, "step", step)
    line = refused(*train(workplace, "--workers", "1", "--loader", "torch"))
    assert "a process that reads images has ended" in line
    assert "the same command continues from what is saved" in line
    monkeypatch.undo()
    assert done(train(workplace, "--workers", "1", "--loader", "torch"))
    killed = written(workplace.results)
    assert killed == written(workplace.make(results="straight").parents[2])


def test_a_clock_that_jumps_changes_nothing(workplace, monkeypatch):
    straight = written(workplace.make(results="straight").parents[2])
    real, calls = time.time, []

    def jumping():
        calls.append(1)
        return real() + (10**7 if len(calls) % 2 else -(10**7))

    monkeypatch.setattr(time, "time", jumping)
    assert done(train(workplace, "--workers", "0", "--checkpoint-seconds", "0"))
    assert written(workplace.results) == straight


@pytest.mark.parametrize("shift", [-(10**8), 10**8])
def test_a_second_driver_is_refused_whatever_the_clock_says(workplace, refused, shift):
    lock = workplace.job().lock
    first = RunLock(lock)
    first.acquire()
    os.utime(lock, (time.time() + shift, time.time() + shift))
    assert "another process works on this run" in refused(*train(workplace))
    first.release()
    assert done(train(workplace))
