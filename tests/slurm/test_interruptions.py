"""Whatever a cluster does to a training, it ends with the weights of one that nothing was done to."""

import os
import re
import signal
import time
from contextlib import suppress

import pytest
from driver import LONG, LONGER, PROFILE, sessions


def assert_whole(checkout, uninterrupted, weights=LONG):
    assert (checkout.folder / weights).read_bytes() == uninterrupted[weights]
    assert not list((checkout.folder / "results" / "work").iterdir())
    assert list((checkout.folder / weights).with_name("tensorboard").glob("events.*"))


def test_warned_before_the_time_limit_a_training_goes_on_as_the_same_job(here, cluster, drive, uninterrupted):
    """Longer than the partition allows: job after job, with no one watching, and without spending a retry."""
    here.replace(PROFILE, "retries: 2", "retries: 0")
    driver = drive(here, LONGER)
    for session in range(2):
        job = driver.training("long/longer")
        slurm(cluster, "update", f"JobId={job['JobID']}", "EndTime=now+200")
        hold_back(driver, cluster, job, lambda session=session, job=job: restarts(cluster, job) > session)
        slurm(cluster, "update", f"JobId={job['JobID']}", "TimeLimit=1-00:00:00")
        # What the log says from now on, the new session says.
        (here.folder / "logs/long/longer/seed0/train.log").unlink()
    driver.finish()
    assert_whole(here, uninterrupted, LONGER)
    begun = [(session["from_epoch"], session["from_step"]) for session in sessions(here, "long/longer")]
    # Even one that was warned while it started took a step before it stopped.
    assert (0, 0) == begun[0] < begun[1] < begun[2]
    assert len(begun) == 3
    assert restarts(cluster, job) == 2


def test_killed_by_the_time_limit_a_training_is_retried_with_more_time(here, cluster, drive, uninterrupted):
    here.replace(PROFILE, "--signal=TERM@300 ", "")
    driver = drive(here, LONGER)
    job = driver.training("long/longer")
    slurm(cluster, "update", f"JobId={job['JobID']}", "EndTime=now+1")
    hold_back(driver, cluster, job, lambda: job["JobID"] not in [other["JobID"] for other in cluster.running()])
    driver.finish()
    assert_whole(here, uninterrupted, LONGER)
    assert "ended as TIMEOUT" in driver.log.read_text()
    assert len(sessions(here, "long/longer")) == 2
    (last,) = [other for other in cluster.jobs() if int(other["JobID"]) > int(job["JobID"])]
    assert "TimeLimit=2-00:00:00" in slurm(cluster, "--oneliner", "show", "job", last["JobID"])


def test_cancelled_a_training_is_retried_and_not_requeued(here, cluster, drive, uninterrupted):
    driver = drive(here, LONG)
    job = driver.training()
    cluster.run("scancel", job["JobID"])
    driver.finish()
    assert_whole(here, uninterrupted)
    assert "ended as CANCELLED" in driver.log.read_text()
    assert restarts(cluster, job) == 0
    assert [session["from_epoch"] > 0 for session in sessions(here)] == [False, True]


def test_requeued_by_an_operator_a_training_continues(here, cluster, drive, uninterrupted):
    driver = drive(here, LONG)
    job = driver.training()
    slurm(cluster, "requeue", job["JobID"])
    driver.finish()
    assert_whole(here, uninterrupted)
    assert [session["from_epoch"] > 0 for session in sessions(here)] == [False, True]


def test_a_lost_node_costs_what_was_not_saved_and_nothing_else(here, cluster, drive, uninterrupted):
    driver = drive(here, LONG)
    job = driver.training()
    cluster.kill_node(job["NodeList"])
    slurm(cluster, "update", f"NodeName={job['NodeList']}", "State=DOWN", "Reason=lost")
    driver.finish()
    assert_whole(here, uninterrupted)
    assert "its former owner is dead" in here.read("logs/long/long/seed0/train.log")
    after = max(cluster.jobs(), key=lambda other: int(other["JobID"]))
    assert after["NodeList"] != job["NodeList"]


@pytest.mark.parametrize("grace", [20, 0])
def test_preempted_a_training_makes_room_and_continues(here, cluster, drive, uninterrupted, grace):
    """In a partition that cancels: Snakemake's plugin would wait for ever for a job in state PREEMPTED."""
    slurm(cluster, "update", "PartitionName=cancelled", f"GraceTime={grace}")
    here.replace(PROFILE, "  # slurm_partition: gpu  ", "  slurm_partition: cancelled  ")
    driver = drive(here, LONG)
    job = driver.training()
    make_room(cluster, job)
    hold_back(driver, cluster, job, lambda: job["JobID"] not in [other["JobID"] for other in cluster.running()])
    driver.finish()
    assert_whole(here, uninterrupted)
    assert len(sessions(here)) == 2


def test_a_second_driver_meets_the_job_that_the_first_left_behind(here, cluster, drive, uninterrupted):
    """The login node was rebooted: the job goes on alone, and no other may disturb it."""
    # A long one: of a job that is stopped while it writes its last files, the second driver removes these.
    first = drive(here, LONGER)
    job = first.training("long/longer")
    # It must not end before the second driver's job has lost its patience.
    signal_training(cluster, job, signal.SIGSTOP)
    log = here.folder / "logs/long/longer/seed0/train.log"
    # Under another name, for the second job's Snakemake removes it.
    os.link(log, log.with_name("left.log"))
    first.kill()
    assert here.run("snakemake", "--unlock").returncode == 0
    here.replace(PROFILE, "retries: 2", "retries: 0")
    second = drive(here, LONGER)
    assert second.wait() == 1
    line = f"another process works on this run (Slurm job {job['JobID']}, process "
    assert line in second.log.read_text()
    assert f"let it end, or scancel {job['JobID']}, then start again" in second.log.read_text()
    assert re.findall(r"epoch (\d+)/400", log.with_name("left.log").read_text())[-1] != "400", "it was over too soon"
    signal_training(cluster, job, signal.SIGCONT)
    cluster.wait_until(lambda: not cluster.jobs("running,completing"), "the left job's end", seconds=240)
    assert_whole(here, uninterrupted, LONGER)
    assert len(sessions(here, "long/longer")) == 1
    # The second driver gave the run up, and what the left job finished is taken as it is.
    assert here.planned("--profile", "slurm", LONGER) == set()


def test_measurements_that_are_preempted_are_made_again(here, cluster, drive):
    """They cannot ask to be started again; Snakemake's plugin would wait for ever for a job in state PREEMPTED."""
    weights, metrics = (f"results/tiny/small/seed0/{name}" for name in ("weights.safetensors", "metrics.json"))
    assert here.run("snakemake", "--cores", "2", weights).returncode == 0
    # Or there is nothing left to measure.
    (here.folder / "results/tiny/small/seed0/measured.json").unlink()
    slurm(cluster, "update", "PartitionName=cancelled", "GraceTime=0")
    here.replace(PROFILE, "  # slurm_partition: gpu  ", "  slurm_partition: cancelled  ")
    driver = drive(here, metrics)
    driver.wait_until(lambda: cluster.running("rule_evaluate"), "the measurement")
    make_room(cluster, cluster.running("rule_evaluate")[0])
    driver.finish()
    assert "ended as PREEMPTED" in driver.log.read_text()
    assert (here.folder / metrics).exists()


def test_a_job_that_slurm_forgot_before_it_was_asked_about_is_over(here, cluster, drive, uninterrupted):
    """A login node that was asleep; Snakemake's plugin would wait for ever."""
    driver = drive(here, LONG)
    job = driver.training()
    cluster.remember_jobs(5)
    try:
        driver.process.send_signal(signal.SIGSTOP)
        known = {"JobID": job["JobID"]}.items()
        cluster.wait_until(lambda: not any(known <= each.items() for each in cluster.jobs()), "oblivion", seconds=180)
        driver.process.send_signal(signal.SIGCONT)
        driver.finish(60)
    finally:
        cluster.remember_jobs(300)
    assert f"Slurm does not know job {job['JobID']} any more" in driver.log.read_text()
    assert_whole(here, uninterrupted)


def test_ctrl_c_lets_jobs_save_and_the_same_command_continues(here, cluster, drive, uninterrupted):
    driver = drive(here, LONG)
    job = driver.training()
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait(60) == 1
    cluster.wait_until(lambda: not cluster.jobs("pending,running,completing"), "the job's end", seconds=30)
    assert job["JobID"] in [other["JobID"] for other in cluster.jobs("cancelled")]
    drive(here, LONG).finish()
    assert_whole(here, uninterrupted)
    assert [session["from_epoch"] > 0 for session in sessions(here)] == [False, True]


def test_ctrl_c_while_the_controller_is_away_leaves_no_job_behind(here, cluster, drive):
    before = len(cluster.jobs())
    cluster.stop_controller()
    driver = drive(here, LONG)
    driver.wait_until(lambda: "Slurm does not take job" in driver.log.read_text(), "a job that is not taken")
    driver.process.send_signal(signal.SIGINT)
    assert driver.wait(60) == 1
    cluster.start_controller()
    assert len(cluster.jobs()) == before


def test_a_job_that_slurm_took_without_saying_so_is_not_sent_twice(here, cluster, drive, uninterrupted, tmp_path):
    """On a busy controller, sbatch gives up while its job is being accepted."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    failure = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    sbatch.write_text(f'#!/bin/sh\n/usr/bin/sbatch "$@"\necho "{failure}" >&2\nexit 1\n')
    sbatch.chmod(0o755)
    before = {job["JobID"] for job in cluster.jobs()}
    driver = drive(here, LONG, PATH=f"{sbatch.parent}:{here.full_environment()['PATH']}")
    driver.finish()
    assert "was taken after all" in driver.log.read_text()
    assert len({job["JobID"] for job in cluster.jobs()} - before) == 1
    assert_whole(here, uninterrupted)


def test_while_the_controller_is_away_jobs_go_on_and_new_ones_wait(here, cluster, drive, uninterrupted):
    """Maintenance: Snakemake's plugin would take the new job for failed, and forget the running one."""
    here.replace(PROFILE, "retries: 2", "retries: 0")
    cluster.stop_controller()
    driver = drive(here, LONG)
    driver.wait_until(lambda: "Slurm does not take job" in driver.log.read_text(), "a job that is not taken")
    cluster.start_controller()
    driver.training()
    cluster.stop_controller()
    driver.wait_until(lambda: "does not say how the jobs are" in driver.log.read_text(), "a question unanswered")
    cluster.start_controller()
    driver.finish()
    assert_whole(here, uninterrupted)
    assert len(sessions(here)) == 1


def slurm(cluster, *arguments: str) -> str:
    return cluster.run("scontrol", *arguments)


def make_room(cluster, job) -> None:
    """Let a more urgent job need a job's node."""
    wide = ("--partition=urgent", "--cpus-per-task=8", f"--nodelist={job['NodeList']}", "--output=/dev/null")
    cluster.run("sbatch", *wide, "--wrap=sleep 3")


def hold_back(driver, cluster, job, condition) -> None:
    """Let a job train slowly, however quick the machine is, until Slurm has done what it looks at every 30 seconds."""

    def slowly() -> bool:
        signal_training(cluster, job, signal.SIGSTOP)
        time.sleep(2)
        signal_training(cluster, job, signal.SIGCONT)
        return condition()

    driver.wait_until(slowly, "Slurm's answer", seconds=120)


def signal_training(cluster, job, number: signal.Signals) -> None:
    """Send a signal to a job's training and to the processes that load its images."""
    for process in cluster.trainings(job):
        with suppress(ProcessLookupError):
            os.kill(process, number)


def restarts(cluster, job) -> int:
    return next((int(now["RestartCnt"]) for now in cluster.jobs() if now["JobID"] == job["JobID"]), 0)
