"""Several processes answer like one: exit codes and lines, without torchrun's traceback."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

pytestmark = pytest.mark.slow

LAUNCH = ("-m", "distillery.cluster.launch", "--standalone", "--nproc-per-node=2", "-m", "distillery")


def start(workplace, *options):
    command = [
        sys.executable,
        *LAUNCH,
        "train",
        str(workplace.experiment),
        "small",
        "--results",
        str(workplace.results),
    ]
    return subprocess.Popen([*command, "--workers", "1", "--threads", "1", *options], stderr=subprocess.PIPE, text=True)


def test_bad_input_ends_with_its_line(workplace):
    workplace.edit_recipe("batch: 7")
    process = start(workplace)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "small.batch: 7 images cannot be shared out evenly to 2 devices" in said
    assert "Traceback" not in said


def test_a_stopped_run_of_two_processes_is_saved_and_continues(workplace):
    workplace.edit_recipe("epochs: 200")
    process = start(workplace)
    for line in process.stderr:
        if "epoch 3/" in line:
            break
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(timeout=60) == 85
    assert "SIGTERM: saved; the same command continues from here" in said
    assert "Traceback" not in said
    assert list((workplace.results / "work").rglob("checkpoint.pt"))
    assert not list((workplace.results / "work").rglob("lock"))


def test_processes_end_with_a_launcher_that_is_killed(workplace):
    workplace.edit_recipe("epochs: 500")
    process = start(workplace)
    for line in process.stderr:
        if "epoch 2/" in line:
            break
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert len(ranks) >= 2
    assert not psutil.wait_procs(ranks, timeout=20)[1]
    process.wait()


def test_warned_processes_have_minutes_to_validate_and_save(monkeypatch):
    """Torch would kill them after 30 seconds."""
    from torch.distributed import run

    from distillery.cluster.launch import main

    granted = []
    monkeypatch.setattr(run, "run", lambda options: granted.append(run.config_from_args(options)[0].shutdown_timeout))
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "")
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["--standalone", "--nproc-per-node=2", "-m", "distillery", "--help"]) == 0
    assert granted == [240]


@pytest.mark.parametrize(("finishes", "code"), [(True, 0), (False, 85)])
def test_a_warning_that_comes_after_the_last_step_stops_nothing(monkeypatch, finishes, code):
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from distillery.cluster.launch import FINISHED, main, note_finished

    def warned(options):
        if finishes:
            note_finished()
        raise SignalException("", signal.SIGTERM)

    monkeypatch.setattr(run, "run", warned)
    monkeypatch.setenv(FINISHED, "of another launcher")
    assert main(["--standalone", "--nproc-per-node=2", "-m", "distillery", "--help"]) == code
    assert FINISHED not in os.environ


def test_a_process_whose_launcher_is_gone_ends_as_it_would_alone(monkeypatch, tmp_path):
    from distillery.cluster.launch import FINISHED, note_finished

    monkeypatch.setenv(FINISHED, str(tmp_path / "gone" / "finished"))
    note_finished()
