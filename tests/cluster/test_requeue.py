"""When a job asks to be started again. This scontrol answers as Slurm 22.05 does; tests/slurm asks the real one."""

import pytest

from distillery.cluster.requeue import requeue_this_job

SCONTROL = """#!/bin/sh
echo "$*" >> {folder}/asked
case "$1" in
  --oneliner) echo 'JobId=7 JobName=a b=c JobState={state} Reason=None PreemptTime={preempted} Comment=x' ;;
  requeue) {requeue} ;;
esac
"""


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    def arrange(state="RUNNING", preempted="None", requeue="exit 0"):
        program = tmp_path / "scontrol"
        program.write_text(SCONTROL.format(folder=tmp_path, state=state, preempted=preempted, requeue=requeue))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        return tmp_path / "asked"

    return arrange


@pytest.mark.parametrize(
    ("state", "preempted", "again"),
    [
        ("RUNNING", "None", True),  # sbatch --signal, scancel --signal
        ("RUNNING", "2026-11-21T13:36:46", True),  # preempted, in its time of grace
        ("COMPLETING", "2026-11-21T13:36:46", True),  # preempted without one
        ("COMPLETING", "None", False),  # scancel, scontrol requeue, time is up
        ("CANCELLED", "None", False),
    ],
)
def test_a_warned_job_asks_and_a_cancelled_one_does_not(scontrol, state, preempted, again):
    asked = scontrol(state, preempted)
    assert requeue_this_job() is again
    assert ("requeue 7" in asked.read_text()) is again


def test_the_answer_of_a_site_that_forbids_requeueing_is_quoted(scontrol, capsys):
    scontrol(requeue="echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    assert requeue_this_job() is False
    assert "does not start job 7 again by itself: Requested operation is presently" in capsys.readouterr().err


@pytest.mark.parametrize("silent", ["--oneliner", "requeue"])
def test_a_controller_that_is_away_is_asked_again(scontrol, monkeypatch, capsys, silent):
    monkeypatch.setattr("distillery.cluster.requeue.SECONDS_BEFORE_ASKING_AGAIN", 0.01)
    asked = scontrol()
    program = asked.with_name("scontrol")
    away = f"""#!/bin/sh
if [ "$1" = {silent} ] && [ ! -e {asked}.back ]; then
  touch {asked}.back
  echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2
  exit 1
fi
"""
    program.write_text(away + program.read_text().removeprefix("#!/bin/sh\n"))
    assert requeue_this_job() is True
    assert asked.read_text().count("requeue 7") == 1
    assert asked.with_name("asked.back").exists()


def test_a_controller_that_stays_away_is_told(scontrol, monkeypatch, capsys):
    monkeypatch.setattr("distillery.cluster.requeue.SECONDS_BEFORE_ASKING_AGAIN", 0.01)
    monkeypatch.setattr("distillery.cluster.requeue.PATIENCE_SECONDS", 0.1)
    scontrol(requeue="echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1")
    assert requeue_this_job() is False
    assert "does not start job 7 again by itself: Unable to contact slurm controller" in capsys.readouterr().err


def test_without_slurm_scontrol_is_not_called(scontrol, monkeypatch):
    asked = scontrol()
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeue_this_job() is False
    assert not asked.exists()


def test_without_scontrol_the_job_ends_as_it_would_have(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeue_this_job() is False
