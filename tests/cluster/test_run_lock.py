"""Who may work on a run: one process, whatever died, froze or started twice."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from distillery.cluster import run_lock as module
from distillery.cluster.run_lock import RunLock, locked
from distillery.errors import UserError

FORK = multiprocessing.get_context("fork")
ENDED = 2**22 + 1  # no kernel gives out such a process number


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "experiment" / "run" / "seed0" / "lock"


def lock(path: Path) -> RunLock:
    return RunLock(path, heartbeat_seconds=0.05)


def leave_behind(path: Path, **facts: object) -> None:
    """A lock whose owner cannot release it any more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(module._this_process(), **facts))))


@pytest.fixture
def beating(path):
    """A process on another machine, whose clock is years behind."""
    leave_behind(path, token="beating", machine="n7", slurm_job="12")
    ended = threading.Event()

    def beat():
        date = 1e9
        while not ended.wait(0.05) and path.exists():
            date += 1
            os.utime(path, (date, date))

    thread = threading.Thread(target=beat)
    thread.start()
    yield
    ended.set()
    thread.join()


def test_a_released_lock_leaves_nothing_but_checkpoints(path, tmp_path):
    for left in ([], [path.with_name("checkpoints")]):
        held = lock(path)
        held.acquire()
        held.check()
        for folder in left:
            folder.mkdir()
        held.release()
        assert [each for each in (tmp_path / "work").rglob("*") if each.parent == path.parent] == left
        assert list((tmp_path / "work").iterdir()) == ([path.parents[2]] if left else [])


@pytest.mark.parametrize(
    ("job", "owner", "cure"),
    [(None, r"process \d+ on", "stop it"), ("4711", r"Slurm job 4711, process \d+ on", "scancel 4711")],
)
def test_a_living_owner_on_this_machine_is_named_at_once(path, monkeypatch, job, owner, cure):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    held = lock(path)
    held.acquire()
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"\({owner} .*, since .*\); let it end, or {cure}, then start again"):
        lock(path).acquire()
    assert time.monotonic() - began < 0.5
    held.check()
    held.release()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "quick"),
    [
        ({"process": ENDED}, True),
        ({"started": "1"}, True),
        ({"machine": "n7"}, False),
        ({"machine": "n7", "slurm_job": "12"}, True),
    ],
    ids=["ended", "number used again", "machine lost", "Slurm started the job again"],
)
def test_a_dead_owner_is_followed(path, monkeypatch, capsys, facts, quick):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    leave_behind(path, token="dead", **({"slurm_job": None} | facts))
    held = lock(path)
    began = time.monotonic()
    held.acquire(death_seconds=0.6)
    assert (time.monotonic() - began < 0.5) is quick
    held.check()
    assert "its former owner is dead" in capsys.readouterr().err
    held.release()


def test_a_killed_owner_that_was_not_waited_for_is_dead(path):
    killed = subprocess.Popen(["sleep", "60"])
    leave_behind(path, process=killed.pid, started=module._started(killed.pid))
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    held = lock(path)
    held.acquire()
    held.release()
    killed.wait()


@pytest.mark.slow
def test_a_lock_that_cannot_be_read_has_a_dead_owner(path):
    path.parent.mkdir(parents=True)
    path.touch()
    held = lock(path)
    held.acquire(death_seconds=0.3)
    held.check()
    held.release()


def test_a_beating_owner_elsewhere_is_alive_whatever_its_clock_says(path, beating):
    with pytest.raises(UserError, match=r"Slurm job 12, process .* on n7"):
        lock(path).acquire(death_seconds=5)


def test_a_requeued_job_does_not_wait_for_its_own_old_lock(path, beating, monkeypatch):
    """Slurm lost the machine, but its process and the shared files live on."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    held = lock(path)
    held.acquire(death_seconds=60)
    held.check()
    held.release()


@pytest.mark.slow
def test_an_owner_that_is_about_to_end_is_waited_for(path):
    first, second = lock(path), lock(path)
    first.acquire()
    threading.Timer(0.4, first.release).start()
    second.acquire(patience_seconds=5)
    assert second.waited
    second.release()


def test_heartbeats_go_on_until_release(path):
    held = lock(path)
    held.acquire()
    dates, deadline = set(), time.monotonic() + 5
    while len(dates) < 4 and time.monotonic() < deadline:
        dates.add(path.stat().st_mtime_ns)
        time.sleep(0.02)
    assert len(dates) == 4
    held.release()


HOLD = """
import sys, time
from pathlib import Path
from distillery.cluster.run_lock import RunLock
RunLock(Path(sys.argv[1]), heartbeat_seconds=0.05).acquire()
print("held", flush=True)
time.sleep(30)
"""


@pytest.mark.slow
def test_an_owner_that_was_taken_for_dead_ends_when_it_wakes(path, monkeypatch):
    """A machine that slept, or a node that had lost its network."""
    command = [sys.executable, "-c", HOLD, str(path)]
    frozen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert frozen.stdout.readline() == "held\n"
    frozen.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(module.socket, "gethostname", lambda: "n2")
    successor = lock(path)
    successor.acquire(death_seconds=0.4)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(timeout=10) == 2
    line = frozen.stderr.read()
    assert line.startswith(f"distillery: {path}: this process")
    assert f"taken for dead; now working there: process {os.getpid()} on n2" in line
    successor.check()
    successor.release()


def test_a_taken_lock_is_noticed_before_writing_and_not_released(path):
    held = RunLock(path, heartbeat_seconds=1e6)
    held.acquire()
    leave_behind(path, token="another", machine="n2")
    with pytest.raises(UserError, match=r"now working there: process \d+ on n2"):
        held.check()
    held.release()
    assert path.exists()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_overtaken_while_taking_over_leaves_the_run_to_the_other(path, monkeypatch, moment):
    leave_behind(path, process=ENDED)

    def overtaken(*_):
        monkeypatch.undo()
        leave_behind(path, token="another")
        return True

    if moment == "before":
        monkeypatch.setattr(RunLock, "_is_dead", overtaken)
    else:
        monkeypatch.setattr(module, "write_json", overtaken)
    with pytest.raises(UserError, match="another process works on this run"):
        lock(path).acquire()
    assert json.loads(path.read_text())["token"] == "another"


def contend(path: Path, gate, owners) -> None:
    held = lock(path)
    gate.wait()
    try:
        held.acquire()
    except UserError:
        return
    time.sleep(0.5)  # ten heartbeats
    held.check()
    owners.append(os.getpid())
    time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_come_at_once_one_remains(path, stale):
    if stale:
        leave_behind(path, process=ENDED)
    with FORK.Manager() as manager:
        gate, owners = manager.Barrier(8), manager.list()
        crowd = [FORK.Process(target=contend, args=(path, gate, owners)) for _ in range(8)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        assert len(owners) == 1


def test_only_the_first_process_of_a_run_holds_its_lock(path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with locked(path) as held:
        assert held is None
        assert not path.exists()
    monkeypatch.setenv("RANK", "0")
    with locked(path):
        assert path.exists()
    assert not path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    with pytest.raises(UserError, match="lock: cannot be written: File name too long"):
        lock(tmp_path / ("long" * 100) / "lock").acquire()


@pytest.mark.parametrize("where", ["/proc/nowhere/lock", "link/lock", "lock"])
def test_a_place_that_takes_no_lock_is_no_endless_wait(tmp_path, where):
    (tmp_path / where.partition("/")[0]).symlink_to(tmp_path / "nowhere" / "at all") if where[0] != "/" else None
    with pytest.raises(UserError, match="lock: cannot be written"):
        lock(tmp_path / where).acquire(0)
