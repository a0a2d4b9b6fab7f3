"""Troubles of a machine while a run is made: one line, or it goes on rightly; the next start gives the same bytes."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

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


@pytest.mark.slow
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


NOBODY = 65534


def give_up_rights():
    """From now on, what belongs to another user is closed to this process, too, though it is root's."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # the third version, of the process itself
    if ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()):
        os._exit(99)


@pytest.fixture
def elsewhere(workplace, tmp_path, monkeypatch):
    """Where a part of the workplace belongs to another user: run a command there; its exit code and lines."""
    if os.geteuid():
        pytest.skip("only root may give files away")
    monkeypatch.chdir(workplace.folder)

    def run(closed, mode, verb, *words):
        closed = Path(closed)
        for path in (*closed.rglob("*"), closed):
            os.chown(path, NOBODY, NOBODY)
        closed.chmod(mode)
        said = tmp_path / "said.txt"
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            sys.stderr = os.fdopen(2, "w")
            give_up_rights()
            code = 1
            try:
                main([verb, *words])
            except SystemExit as ended:
                code = ended.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, [line for line in said.read_text().splitlines() if line.startswith(("distillery: ", "Trace"))]

    return run


PAGE = "config/tiny.yaml"
SMALL = [PAGE, "small", "--workers", "0", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "mode", "words"),
    [
        ("results", 0o755, ["train", *SMALL]),
        ("results", 0o755, ["prepare", "tiny", "--workers", "0"]),
        ("results", 0o755, ["tabulate", PAGE, "--partial"]),
        ("results", 0o755, ["plot", PAGE, "--partial"]),
        ("results", 0o700, ["train", *SMALL]),
        ("results", 0o700, ["evaluate", *SMALL]),
        ("results", 0o700, ["verify", PAGE]),
        ("results", 0o700, ["why", "results/tiny/small/seed0/run.json"]),
        ("results/datasets/tiny", 0o700, ["train", *SMALL]),
        ("results/datasets/tiny", 0o700, ["data", "tiny"]),
        ("data/tiny/train/ape", 0o700, ["prepare", "tiny", "--workers", "0", "--results", "new"]),
        ("data/tiny/train/ape/000.png", 0o600, ["prepare", "tiny", "--workers", "0", "--results", "new"]),
        ("config", 0o700, ["check", PAGE]),
        ("config/datasets.yaml", 0o600, ["check", PAGE]),
        ("config/recipes", 0o700, ["check", PAGE]),
    ],
)
def test_what_belongs_to_another_user_is_said_in_one_line(workplace, elsewhere, closed, mode, words):
    (workplace.folder / "config/datasets.yaml").write_text("tiny: {path: data/tiny}\n")
    code, lines = elsewhere(closed, mode, *words)
    assert code == 2, lines
    (line,) = lines
    assert "Permission denied" in line or "is not readable" in line
    assert closed.partition("/")[0] in line
    assert not list(workplace.folder.rglob(".*.tmp"))


def test_weights_that_another_user_keeps_to_himself_are_said(workplace, elsewhere):
    weights = workplace.make() / "weights.safetensors"
    code, lines = elsewhere(weights.relative_to(workplace.folder), 0o600, "evaluate", *SMALL)
    assert (code, lines) == (
        2,
        ["distillery: results/tiny/small/seed0/weights.safetensors: cannot be read: Permission denied"],
    )


@pytest.mark.slow
def test_a_run_that_another_user_keeps_to_himself_is_not_called_one_that_has_not_begun(workplace, elsewhere, capfd):
    workplace.make()
    elsewhere("results/tiny/small", 0o700, "status", PAGE)
    board = capfd.readouterr().out
    assert "results/tiny/small/seed0/run.json: Permission denied" in board


@pytest.mark.slow
@pytest.mark.parametrize("buffered", [True, False])
def test_standard_output_that_is_full_or_closed_is_said_or_left(workplace, monkeypatch, buffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if buffered else "1")
    words = [
        sys.executable,
        "-m",
        "distillery",
        "status",
        str(workplace.experiment),
        "--results",
        str(workplace.results),
    ]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in done.stderr
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
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
    # torch raises for each worker amid whatever Python does, be it releasing the lock, which ends with a process.
    for lock in workplace.results.rglob("lock"):
        lock.unlink()
    assert done(train(workplace, "--workers", "1", "--loader", "torch"))
    killed = written(workplace.results)
    assert killed == written(workplace.make(results="straight").parents[2])


@pytest.mark.slow
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
