"""`make demo`: stopped, killed, started twice; what it prints and what it leaves."""

import shutil
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.slow

PAGE = "results/tables/tiny.md"


def demo(checkout) -> tuple[str, ...]:
    # scripts/demo.sh would put the environment of this repository's root first, which a clone does not have.
    return (sys.executable, str(checkout.folder / "scripts" / "demo.py"), "tiny")


@pytest.fixture
def half_made(made):
    """A page of which one student is missing, and a demo that has begun to train it."""
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
    deadline = time.monotonic() + 60
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


def test_after_killing_everything_the_demo_ends_with_the_same_page(half_made, finished):
    checkout, process = half_made
    kill(psutil.Process(process.pid))
    assert any((checkout.folder / ".snakemake" / "locks").iterdir())
    result = checkout.run(*demo(checkout))
    assert result.returncode == 0, result.stdout
    assert "train tiny/taught, seed 0" in result.stdout
    assert checkout.read(PAGE) == finished.read(PAGE)


def test_a_second_demo_waits_for_what_a_killed_one_left(half_made, finished):
    checkout, process = half_made
    orphans = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    result = checkout.run(*demo(checkout))
    assert not any(orphan.is_running() and orphan.status() != psutil.STATUS_ZOMBIE for orphan in orphans)
    assert result.returncode == 0, result.stdout
    assert "waiting for it" in result.stdout
    assert checkout.read(PAGE) == finished.read(PAGE)


def test_a_signal_stops_all_that_the_demo_started(half_made):
    checkout, process = half_made
    started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(timeout=30) == 143
    assert "continues from here" in process.stdout.read()
    assert not any(child.is_running() for child in started)
    assert not any((checkout.folder / ".snakemake" / "locks").iterdir())


def test_a_finished_demo_has_nothing_to_do_and_dvc_knows_all(made):
    made.replace("dvc.yaml", "digits", "tiny")
    shutil.rmtree(made.folder / ".dvc" / "cache")
    for _ in range(2):
        began = time.monotonic()
        result = made.run(*demo(made))
        assert result.returncode == 0, result.stdout
        assert " of " not in result.stdout.splitlines()[0]
        assert made.read(PAGE).strip().splitlines()[0] in result.stdout
        assert made.planned(PAGE, "results/figures/tiny") == set()
        assert made.run("dvc", "status", "--quiet").returncode == 0
    assert time.monotonic() - began < 10


def test_dvc_keeps_silent_about_raw_images_that_were_edited(made):
    """Recording them would pass them off as those that the results were made of."""
    next((made.folder / "data" / "tiny" / "train").rglob("*.png")).unlink()
    before = made.read("data.dvc")
    assert made.run(*demo(made)).returncode == 0
    assert made.read("data.dvc") == before
    assert "modified" in made.run("dvc", "status", "data.dvc").stdout


def test_a_failure_shows_the_end_of_the_log(made):
    shutil.rmtree(made.folder / "results" / "datasets")
    shutil.rmtree(made.folder / "data" / "tiny")
    result = made.run(*demo(made))
    assert result.returncode == 1
    assert "Failed: prepare data set tiny" in result.stdout
    assert "distillery: data/tiny: no raw images" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_mistake_in_the_configuration_is_shown(made):
    made.replace("config/tiny.yaml", "teacher: big", "teacher: bug")
    result = made.run(*demo(made))
    assert result.returncode == 1
    assert result.stdout.strip().startswith("distillery: config/tiny.yaml: tiny.runs.taught.teacher: no run 'bug'")
