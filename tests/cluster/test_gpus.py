"""Jobs on a workstation's GPUs, which a stub of nvidia-smi lists: who gets which, and when a device is free again."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distillery.cluster import gpus
from distillery.cluster.gpus import Device, all_devices, hold, visible_devices, workers_each
from distillery.errors import UserError

LAUNCH = Path(__file__).parents[2] / "workflow" / "scripts" / "launch.sh"
FOUR = "\n".join(f"GPU {n}: NVIDIA H100 80GB HBM3 (UUID: GPU-{n}aaa-bbbb)" for n in range(4))
MIXED = "GPU 0: NVIDIA T400 (UUID: GPU-old)\nGPU 1: NVIDIA A100 (UUID: GPU-new)\n"
IN_PARTS = (
    "GPU 0: NVIDIA A100 (UUID: GPU-whole)\n"
    "  MIG 3g.20gb     Device  0: (UUID: MIG-one)\n  MIG 3g.20gb     Device  1: (UUID: MIG-two)\n"
    "GPU 1: NVIDIA A100 (UUID: GPU-other)\n"
)
# Notes when it has which devices, in seconds since the epoch.
JOB = """
import os, sys, time
came = time.time()
time.sleep({seconds})
with open(sys.argv[1], "a") as notes:
    print(os.environ["CUDA_VISIBLE_DEVICES"], came, time.time(), file=notes)
"""


class Machine:
    """A machine with devices that nvidia-smi lists, and a folder of locks of its own."""

    def __init__(self, folder):
        self.folder, self.notes = folder, folder / "notes"
        self.environment = {
            "PATH": f"{folder}:{Path(sys.executable).parent}:{os.defpath}",
            "DISTILLERY_GPU_LOCKS": str(folder / "locks"),
        }

    def lists(self, text, code=0):
        smi = self.folder / "nvidia-smi"
        (self.folder / "listed").write_text(text)
        smi.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] && cat '{self.folder}/listed'\nexit {code}\n")
        smi.chmod(0o755)
        return self

    def start(self, count, share, *command, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "distillery.cluster.gpus", str(count), str(share), *command],
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def job(self, count=1, share=1, seconds=0.0, **environment):
        return self.start(
            count, share, sys.executable, "-c", JOB.format(seconds=seconds), str(self.notes), **environment
        )

    def held(self):
        """What jobs noted: (devices, from, to)."""
        lines = self.notes.read_text().split("\n") if self.notes.exists() else []
        return [(names, float(came), float(went)) for names, came, went in map(str.split, filter(None, lines))]

    def most_at_once(self):
        """The most jobs that a device had at any time."""
        held = [(name, came, went) for names, came, went in self.held() for name in names.split(",")]
        return max(sum(a == name and c <= came < w for a, c, w in held) for name, came, _ in held)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    machine = Machine(tmp_path)
    monkeypatch.setenv("PATH", machine.environment["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return machine


def end(*jobs):
    for job in jobs:
        assert job.wait(timeout=60) == 0, job.stderr.read()


@pytest.mark.slow
def test_eight_jobs_on_four_devices_never_share_one(machine):
    machine.lists(FOUR)
    end(*[machine.job(seconds=0.2) for _ in range(8)])
    assert len(machine.held()) == 8
    assert {names for names, *_ in machine.held()} == {f"GPU-{n}aaa-bbbb" for n in range(4)}
    assert machine.most_at_once() == 1


@pytest.mark.slow
def test_two_jobs_share_a_device_where_that_is_asked_and_spread_first(machine):
    machine.lists(FOUR)
    jobs = [machine.job(share=2, seconds=2.5) for _ in range(8)]
    end(*jobs)
    assert machine.most_at_once() == 2
    # All eight at once: two on each.
    assert max(came for _, came, _ in machine.held()) < min(went for *_, went in machine.held())
    assert all([names for names, *_ in machine.held()].count(f"GPU-{n}aaa-bbbb") == 2 for n in range(4))


@pytest.mark.slow
def test_four_jobs_that_may_share_have_a_device_each_while_there_are_four(machine):
    machine.lists(FOUR)
    end(*[machine.job(share=2, seconds=1.5) for _ in range(4)])
    assert machine.most_at_once() == 1


@pytest.mark.slow
def test_a_job_alone_waits_for_those_that_share_and_they_for_it(machine):
    machine.lists(FOUR.splitlines()[0])
    sharing = machine.job(share=3, seconds=1.0)
    until(lambda: (machine.folder / "locks" / "GPU-0aaa-bbbb.0.lock").exists())
    alone = machine.job(share=1, seconds=0.3)
    assert "waiting for a GPU: 1 of 1 wanted" in alone.stderr.readline()
    later = [machine.job(share=3) for _ in range(2)]
    end(sharing, alone, *later)
    assert [round(went - came, 1) >= 0.3 for _, came, went in machine.held()][:2] == [True, True]
    assert machine.most_at_once() <= 2
    first, second, *rest = sorted(machine.held(), key=lambda each: each[1])
    assert second[1] >= first[2]  # the one alone, before those that came after it
    assert all(came >= second[2] for _, came, _ in rest)


@pytest.mark.slow
def test_jobs_with_two_devices_each_do_not_wait_for_each_other_for_ever(machine):
    machine.lists("\n".join(FOUR.splitlines()[:3]))
    end(*[machine.job(count=2, seconds=0.1) for _ in range(4)])
    assert all(len(set(names.split(","))) == 2 for names, *_ in machine.held())
    assert machine.most_at_once() == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_job_frees_its_device(machine, number):
    machine.lists(FOUR.splitlines()[0])
    child = (
        "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('there', flush=True); time.sleep(60)"
    )
    holder = machine.start(1, 1, sys.executable, "-c", child)
    holder.stdout.readline()
    waiting = machine.job()
    assert "waiting" in waiting.stderr.readline()
    began = time.monotonic()
    holder.send_signal(number)
    end(waiting)
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_job_that_waits_keeps_its_log_young(machine, tmp_path):
    machine.lists(FOUR.splitlines()[0])
    holder = machine.start(1, 1, sys.executable, "-c", "import time; print('there', flush=True); time.sleep(60)")
    holder.stdout.readline()
    log = tmp_path / "train.log"
    with log.open("w") as file:
        waiting = subprocess.Popen(
            [sys.executable, "-m", "distillery.cluster.gpus", "1", "1", "true"],
            env=machine.environment,
            stderr=file,
        )
    until(lambda: log.stat().st_size > 0)
    os.utime(log, (1, 1))
    until(lambda: log.stat().st_mtime > 1)
    holder.kill()
    assert waiting.wait(timeout=20) == 0
    assert log.read_text() == "waiting for a GPU: 1 of 1 wanted, others have them\n"


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- which devices there are -----------------------------------------------------------------------------------------


def test_without_nvidia_smi_there_are_none(machine):
    assert all_devices() == []
    end(machine.start(1, 1, "true"))


def test_a_driver_that_fails_is_named(machine, capsys):
    machine.lists("Failed to initialize NVML: Driver/library version mismatch", code=9)
    assert all_devices() == []
    assert "no GPU is dealt out: Failed to initialize NVML" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("listed", "wanted", "found"),
    [
        (FOUR, None, "0 1 2 3"),
        (FOUR, "2,0", "2 0"),
        (FOUR, "0,0", "0"),
        (FOUR, "GPU-3aaa", "3"),
        (FOUR, " 1 , GPU-2aaa-bbbb", "1 2"),
        (FOUR, "", ""),
        (FOUR, "-1", ""),
        (FOUR, "NoDevFiles", ""),
        (FOUR, "1,-1,2", "1"),
        (FOUR, "1,7,2", "1"),
        (MIXED, "GPU-new", "1"),
        (IN_PARTS, None, "0/0 0/1 1"),
        (IN_PARTS, "0", "0/0 0/1"),
        (IN_PARTS, "MIG-two", "0/1"),
    ],
)
def test_cuda_visible_devices_says_which_are_allowed(machine, listed, wanted, found):
    machine.lists(listed)
    devices = visible_devices({} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted})
    assert " ".join(each.gpu if each.part is None else f"{each.gpu}/{each.part}" for each in devices) == found


def test_where_nothing_lists_them_the_allowed_names_are_the_devices(machine):
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "2,3"}) == [Device("2"), Device("3")]
    end(machine.job(CUDA_VISIBLE_DEVICES="2,3"))
    assert machine.held()[0][0] == "2"


def test_numbers_of_different_gpus_are_refused_unless_their_order_is_said(machine):
    machine.lists(MIXED)
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=1: CUDA counts different GPUs in another order"):
        visible_devices({"CUDA_VISIBLE_DEVICES": "1"})
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert [device.uuid for device in visible_devices(ordered)] == ["GPU-new"]


@pytest.mark.slow
def test_a_job_gets_allowed_devices_only_and_the_same_ones_under_either_name(machine):
    machine.lists(FOUR)
    first = machine.job(seconds=1.5, CUDA_VISIBLE_DEVICES="2")
    until(lambda: (machine.folder / "locks" / "GPU-2aaa-bbbb.lock").exists())
    end(first, machine.job(CUDA_VISIBLE_DEVICES="GPU-2aaa-bbbb"))
    assert [names for names, *_ in machine.held()] == ["GPU-2aaa-bbbb"] * 2
    assert machine.most_at_once() == 1


def test_more_than_there_are_get_one_line(machine):
    job = machine.lists(FOUR).start(5, 1, "true")
    assert job.wait(timeout=20) == 2
    assert job.stderr.read() == (
        "distillery: gpu: 5 GPUs are asked for, but there are 4 (GPU 0, GPU 1, GPU 2, GPU 3); ask for fewer in the "
        "profile's set-resources, or allow more by CUDA_VISIBLE_DEVICES\n"
    )


def test_a_job_that_asks_for_none_sees_what_it_saw(machine):
    job = machine.lists(FOUR).start(0, 1, "sh", "-c", "echo ${CUDA_VISIBLE_DEVICES-unset}")
    assert job.communicate(timeout=20)[0] == "unset\n"


def test_a_folder_of_locks_that_cannot_be_made_gets_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="locks: cannot be written"):
        hold([Device("GPU-a")], 1, 1, tmp_path / "file" / "locks")


@pytest.mark.parametrize(("cores", "jobs", "workers"), [(32, 4, 7), (128, 2, 8), (2, 4, 1), (8, 0, 7)])
def test_workers_share_the_cores(monkeypatch, cores, jobs, workers):
    monkeypatch.setattr(gpus.os, "cpu_count", lambda: cores)
    assert workers_each(jobs) == workers


# --- processes of a training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "per_node", "said"),
    [
        (1, 0, "distillery train"),
        (2, 0, "python -m distillery.cluster.launch --standalone --nproc-per-node=2 -m distillery train"),
        (2, 2, "python -m distillery.cluster.launch --standalone --nproc-per-node=2 -m distillery train"),
        (2, 4, "distillery: gpus_per_node is 4, but gpu gives 2 GPUs; leave gpus_per_node out of the profile"),
    ],
)
def test_each_device_of_a_training_has_a_process(machine, count, per_node, said):
    machine.lists(FOUR)
    for name in ("distillery", "python"):  # say what would be started
        stub = machine.folder / name
        stub.write_text(f'#!/bin/sh\necho {name} "$@"\n')
        stub.chmod(0o755)
    job = machine.start(count, 1, "bash", str(LAUNCH), "1", str(per_node), "2", "train")
    assert "".join(job.communicate(timeout=20)).strip() == said
