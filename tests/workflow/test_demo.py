"""`make demo`: stopped, killed, started twice; what it prints and what it leaves."""

import resource
import shutil
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow

EXPERIMENT = "results/tables/tiny.md"


def demo(checkout) -> tuple[str, ...]:
    return (sys.executable, str(checkout.folder / "scripts" / "demo.py"), "tiny")


@pytest.fixture
def half_made(made):
    """An experiment of which one student is missing, and a demo that has begun to train it."""
    shutil.rmtree(made.folder / "results" / "tiny" / "taught")
    log = made.folder / "logs" / "tiny" / "taught" / "seed0" / "train.log"
    log.unlink()
    process = subprocess.Popen(
        demo(made),
        cwd=made.folder,
        env=made.full_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 180
    while not (log.exists() and "teacher" in log.read_text()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "the training does not start"
        time.sleep(0.05)
    yield made, process
    process.stdout.close()


def kill(process: psutil.Process) -> None:
    for child in process.children(recursive=True):
        child.kill()
    process.kill()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_after_killing_everything_the_demo_ends_with_the_same_experiment(half_made, finished):
    checkout, process = half_made
    kill(psutil.Process(process.pid))
    assert list((checkout.folder / ".snakemake" / "locks").glob("*"))
    result = checkout.run(*demo(checkout))
    assert result.returncode == 0, result.stdout
    assert "train tiny/taught, seed 0" in result.stdout
    assert checkout.read(EXPERIMENT) == finished.read(EXPERIMENT)


def test_a_second_demo_waits_for_what_a_killed_one_left(half_made, finished):
    checkout, process = half_made
    orphans = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    result = checkout.run(*demo(checkout))
    assert result.returncode == 0, result.stdout
    assert not alive(orphans)
    assert "waiting for it" in result.stdout
    assert checkout.read(EXPERIMENT) == finished.read(EXPERIMENT)


def test_a_signal_stops_all_that_the_demo_started(half_made):
    checkout, process = half_made
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=120) == 143
    assert "continues from here" in process.stdout.read()
    assert not alive(started)
    assert not list((checkout.folder / ".snakemake" / "locks").glob("*"))


def test_a_finished_demo_has_nothing_to_do_and_dvc_knows_all(made_home):
    made = made_home
    shutil.rmtree(made.folder / ".dvc" / "cache")
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = made.run(*demo(made))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == 0, result.stdout
        assert "train tiny/" not in result.stdout
        assert made.read(EXPERIMENT).strip().splitlines()[0] in result.stdout
        assert made.planned("--config", "experiments=tiny") == set()
        assert made.run("dvc", "status", "--quiet").returncode == 0
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10


def test_raw_images_that_were_edited_are_not_recorded(made_home):
    """Recording them would pass them off as those that the results were made of."""
    made = made_home
    next((made.folder / "data" / "tiny" / "train").rglob("*.png")).unlink()
    before = made.read("data.dvc")
    assert made.run(*demo(made)).returncode == 0
    assert made.read("data.dvc") == before
    assert "modified" in made.run("dvc", "status", "data.dvc").stdout


def test_a_failure_shows_the_end_of_the_log(made):
    for name in ("results/datasets", "results/tiny", "data/tiny"):
        shutil.rmtree(made.folder / name)
    result = made.run(*demo(made))
    assert result.returncode == 1
    assert "Failed: prepare data set tiny" in result.stdout
    assert "distillery: data/tiny: no raw images" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_mistake_in_the_configuration_is_shown(made):
    made.replace("config/tiny.yaml", "teacher: big", "teacher: bug")
    result = made.run(*demo(made))
    assert result.returncode == 1
    assert "Traceback" not in result.stdout
    line = result.stdout.splitlines()[-1]
    assert line.startswith("distillery: config/tiny.yaml: tiny.runs.taught.teacher: no run 'bug'")
