"""Who may work in a run's folder: one, whatever died, froze or started twice."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distillery.cluster import run_lock as module
from distillery.cluster.run_lock import RunLock, locked
from distillery.errors import UserError

SPAWN = multiprocessing.get_context("fork")
ENDED = 2**22 + 1  # no kernel gives out such a process number


def lock(folder: Path) -> RunLock:
    return RunLock(folder, "experiment-run-seed0.lock", beat_seconds=0.05)


def leave_behind(folder: Path, generation: int = 1, **facts: object) -> Path:
    """A lock whose owner cannot release it any more."""
    owner = replace(module._this_process(), **facts)
    path = folder / f"experiment-run-seed0.lock.{generation}"
    path.write_text(json.dumps(asdict(owner)))
    return path


def test_a_released_lock_leaves_nothing(tmp_path):
    for _ in range(2):
        held = lock(tmp_path)
        held.acquire()
        (file,) = tmp_path.iterdir()
        held.check()
        held.release()
        assert not file.exists()
        assert not list(tmp_path.iterdir())


def test_a_living_owner_on_this_machine_is_named_at_once(tmp_path):
    held = lock(tmp_path)
    held.acquire()
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"process {os.getpid()} on .*, since .*; let it end, or stop it"):
        lock(tmp_path).acquire()
    assert time.monotonic() - began < 0.5
    held.check()
    held.release()


def test_the_slurm_job_to_cancel_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    held = lock(tmp_path)
    held.acquire()
    with pytest.raises(UserError, match=r"\(Slurm job 4711, process .*, or scancel 4711, then start again"):
        lock(tmp_path).acquire()
    held.release()


@pytest.mark.parametrize(
    "facts",
    [{"process": ENDED}, {"started": "1"}, {"processes": "an earlier boot"}, {"machine": "n7", "process": os.getpid()}],
    ids=["ended", "number used again", "rebooted", "machine lost"],
)
def test_a_dead_owner_is_followed(tmp_path, capsys, facts):
    left = leave_behind(tmp_path, 3, **facts)
    held = lock(tmp_path)
    held.acquire(death_seconds=0.3)
    assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["experiment-run-seed0.lock.4"]
    assert "its former owner is dead" in capsys.readouterr().err
    held.release()


def test_all_that_the_dead_left_is_cleared(tmp_path):
    """Who takes over may die before it has removed the lock that it took over."""
    leave_behind(tmp_path, 1, process=ENDED)
    leave_behind(tmp_path, 2, process=ENDED)
    held = lock(tmp_path)
    held.acquire()
    assert [path.name for path in tmp_path.iterdir()] == ["experiment-run-seed0.lock.3"]
    held.release()


def test_a_lock_that_cannot_be_read_has_a_dead_owner(tmp_path):
    (tmp_path / "experiment-run-seed0.lock.1").touch()
    held = lock(tmp_path)
    held.acquire(death_seconds=0.3)
    assert held.path.suffix == ".2"
    held.release()


def test_a_beating_owner_elsewhere_is_alive_whatever_its_clock_says(tmp_path):
    left = leave_behind(tmp_path, machine="n7")
    years_ago = time.time() - 1e8
    os.utime(left, (years_ago, years_ago))

    def beat():
        for second in range(100):
            os.utime(left, (years_ago + second, years_ago + second))
            time.sleep(0.05)

    heart = SPAWN.Process(target=beat)
    heart.start()
    with pytest.raises(UserError, match="on n7"):
        lock(tmp_path).acquire(death_seconds=2)
    heart.kill()
    heart.join()
    lock(tmp_path).acquire(death_seconds=0.3)


def test_a_job_that_slurm_started_again_elsewhere_does_not_wait_for_its_former_self(tmp_path, monkeypatch):
    """Slurm lost the machine, but its process and the shared files live on."""
    left = leave_behind(tmp_path, machine="n7", slurm_job="12")
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    heart = module.threading.Event()

    def beat():
        while not heart.wait(0.05):
            os.utime(left)

    thread = module.threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="Slurm job 12"):
            lock(tmp_path).acquire(death_seconds=0.5)
        monkeypatch.setenv("SLURM_JOB_ID", "12")
        held = lock(tmp_path)
        held.acquire(death_seconds=60)
    finally:
        heart.set()
        thread.join()
    held.check()
    held.release()


def test_an_owner_that_is_about_to_end_is_waited_for(tmp_path):
    first, second = lock(tmp_path), lock(tmp_path)
    first.acquire()
    module.threading.Timer(0.4, first.release).start()
    second.acquire(patience_seconds=5)
    second.release()


def test_the_heart_beats_until_release(tmp_path):
    held = lock(tmp_path)
    held.acquire()
    dates = set()
    deadline = time.monotonic() + 5
    while len(dates) < 4 and time.monotonic() < deadline:
        dates.add(held.path.stat().st_mtime_ns)
        time.sleep(0.02)
    assert len(dates) == 4
    held.release()


FROZEN = """
import sys, time
from pathlib import Path
from distillery.cluster.run_lock import RunLock
held = RunLock(Path(sys.argv[1]), "experiment-run-seed0.lock", beat_seconds=0.05)
held.acquire()
print("held", flush=True)
time.sleep(30)
Path(sys.argv[1], "written").touch()
"""


def test_who_was_taken_for_dead_stops_when_it_wakes(tmp_path, monkeypatch):
    """A machine that slept, or a node that had lost its network."""
    frozen = subprocess.Popen(
        [sys.executable, "-c", FROZEN, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert frozen.stdout.readline() == "held\n"
    frozen.send_signal(signal.SIGSTOP)
    successor = lock(tmp_path)
    successor.owner = replace(successor.owner, slurm_job="12")
    monkeypatch.setattr(module, "_this_process", lambda: replace(successor.owner, machine="elsewhere"))
    successor.acquire(death_seconds=0.4)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(timeout=10) == 2
    line = frozen.stderr.read()
    assert line.startswith(f"distillery: {tmp_path}/experiment-run-seed0.lock: this process")
    assert "taken for dead; now working there: Slurm job 12" in line
    successor.check()
    successor.release()
    assert not list(tmp_path.iterdir())


def test_a_taken_lock_is_noticed_before_writing_and_not_released(tmp_path):
    held = lock(tmp_path)
    held.beat_seconds = 1e6
    held.acquire()
    left = leave_behind(tmp_path, 2, token="another", machine="n2")
    with pytest.raises(UserError, match=r"now working there: process \d+ on n2"):
        held.check()
    held.release()
    assert list(tmp_path.iterdir()) == [left]


def contend(folder: Path, gate, wins) -> None:
    held = lock(folder)
    gate.wait()
    try:
        held.acquire(death_seconds=0.2)
    except UserError:
        return
    wins.append(os.getpid())
    time.sleep(0.5)
    held.check()


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_come_at_once_at_most_one_wins(tmp_path, stale):
    with SPAWN.Manager() as manager:
        for turn in range(5):
            folder = tmp_path / str(turn)
            folder.mkdir()
            if stale:
                leave_behind(folder, process=ENDED)
            gate, wins = manager.Barrier(8), manager.list()
            crowd = [SPAWN.Process(target=contend, args=(folder, gate, wins)) for _ in range(8)]
            for one in crowd:
                one.start()
            for one in crowd:
                one.join()
            assert len(wins) == 1
            assert all(one.exitcode == 0 for one in crowd)


def test_only_the_first_process_of_a_run_holds_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with locked(tmp_path / "run.lock") as held:
        assert held is None
        assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    with locked(tmp_path / "run.lock") as held:
        assert held.path.exists()
    assert not list(tmp_path.iterdir())
