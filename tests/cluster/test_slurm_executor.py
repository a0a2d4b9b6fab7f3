"""What Snakemake makes of Slurm's answers. Slurm's programs are scripts here; tests/slurm asks the real ones."""

import asyncio
import logging
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from distillery.cluster.slurm_executor import Executor, ExecutorSettings, JobStates, common_settings

AWAY = "Unable to contact slurm controller (connect failure)"


@pytest.mark.parametrize(
    ("states", "ends"),
    [
        (["PENDING", "RUNNING", "COMPLETED"], [None, None, "COMPLETED"]),
        (["RUNNING", "TIMEOUT"], [None, "TIMEOUT"]),
        (["RUNNING", None, "RUNNING", None], [None, None, None, None]),
        (["RUNNING", None, None], [None, None, "UNKNOWN"]),
        (["COMPLETING", None, None], [None, None, "UNKNOWN"]),
        (["PENDING", None, None], [None, None, "CANCELLED"]),
        ([None, None], [None, "CANCELLED"]),
        (["RUNNING", "PREEMPTED", "PENDING", "RUNNING"], [None, None, None, None]),
        (["RUNNING", "PREEMPTED", "PREEMPTED"], [None, None, "PREEMPTED"]),
        (["RUNNING", "NODE_FAIL", "NODE_FAIL"], [None, None, "NODE_FAIL"]),
        (["RUNNING", "NODE_FAIL", "PENDING"], [None, None, None]),
    ],
)
def test_a_state_that_may_pass_ends_a_job_when_it_is_seen_twice(states, ends):
    seen = JobStates()
    for state, end in zip(states, ends, strict=True):
        assert seen.end("8", "RUNNING") is None
        assert seen.end("7", state) == end


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Replace one of Slurm's programs, which may be installed here; the file of the calls to them all."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(name: str, script: str) -> Path:
        (folder / name).write_text(f"#!/bin/sh\necho {name} $* >> {tmp_path}/calls\n{script}\n")
        (folder / name).chmod(0o755)
        return tmp_path / "calls"

    write("scontrol", "echo 'MaxArraySize = 1001'")
    for name in ("sacctmgr", "sshare"):
        write(name, ":")
    return write


@pytest.fixture
def reports():
    """What the executor reported to Snakemake, in order."""
    return []


@pytest.fixture
def executor(tmp_path, monkeypatch, program, reports):
    """The executor, with as much of a workflow as it looks at."""
    monkeypatch.chdir(tmp_path)
    Path(".snakemake").mkdir()
    workflow = SimpleNamespace(
        executor_settings=ExecutorSettings(delete_logfiles_older_than=0),
        executor_plugin=SimpleNamespace(common_settings=common_settings),
        remote_execution_settings=SimpleNamespace(
            max_status_checks_per_second=10,
            seconds_between_status_checks=3600,  # tests look themselves
            jobname="snakejob.{name}.{jobid}.sh",
            jobscript=None,
            immediate_submit=False,
        ),
        storage_settings=SimpleNamespace(shared_fs_usage=set()),
        scheduler=SimpleNamespace(
            submit_callback=lambda job: None,
            finish_callback=lambda job: reports.append((job.jobid, "finished", "")),
            error_callback=lambda job: None,
        ),
        main_snakefile="Snakefile",
        workdir_init=str(tmp_path),
        dag=None,
    )
    monkeypatch.setattr(Executor, "seconds_before_submitting_again", 0.05)
    monkeypatch.setattr(Executor, "format_job_exec", lambda self, job: "true")
    executor = Executor(workflow, logging.getLogger("executor"))
    executor.reports = reports
    return executor


class Resource(dict):
    """Snakemake's resources of a job."""

    __getattr__ = dict.get


def a_job(reports, jobid=3, group=False):
    return SimpleNamespace(
        jobid=jobid,
        name="train",
        rule=SimpleNamespace(name="train"),
        wildcards=["tiny", "small", "0"],
        threads=1,
        resources=Resource(slurm_partition="gpu", slurm_account="lab", runtime=60, mem_mb=100),
        is_group=lambda: group,
        register=lambda external_jobid: reports.append((jobid, "submitted", external_jobid)),
        log_error=lambda message, **_: reports.append((jobid, "failed", message)),
    )


@pytest.fixture
def job(reports):
    return a_job(reports)


def looked(executor, *numbers: str) -> list[str]:
    """The jobs that are still waited for after a look."""

    async def look():
        infos = [
            SubmittedJobInfo(a_job(executor.reports, jobid), str(number), {"slurm_logfile": Path(f"{number}.log")})
            for jobid, number in enumerate(numbers)
        ]
        return [info.external_jobid async for info in executor.check_active_jobs(infos)]

    return asyncio.run(look())


def test_snakemake_finds_the_executor_by_its_name():
    plugin = ExecutorPluginRegistry().get_plugin("distillery-slurm")
    assert plugin.executor is Executor
    assert plugin.get_cli_arg("requeue") == "--distillery-slurm-requeue"


@pytest.mark.parametrize("setting", [{"status_command": "sacct"}, {"init_seconds_before_status_checks": 7}])
def test_settings_without_effect_are_refused(setting):
    with pytest.raises(WorkflowError, match=r"distillery-slurm-.*: not supported; squeue is asked every"):
        ExecutorSettings(**setting)


def test_while_slurm_does_not_answer_no_job_is_forgotten(executor, program, reports, caplog):
    program("squeue", f"echo '{AWAY}' >&2; exit 1")
    for _ in range(3):
        assert looked(executor, "7", "8") == ["7", "8"]
    assert f"squeue does not say how the jobs are. They go on; it is asked again later: {AWAY}" in caplog.text
    program("squeue", "echo '7|COMPLETED'; echo '8|RUNNING'")
    Path("7.log").touch()
    assert looked(executor, "7", "8") == ["8"]
    assert reports == [(0, "finished", "")]
    assert not Path("7.log").exists()


def test_the_first_look_may_come_before_the_executor_is_set_up():
    """Snakemake starts the thread that looks first; an error there would end all looks."""
    assert looked(Executor.__new__(Executor)) == []


def test_jobs_of_an_array_and_on_another_cluster_are_found(executor, program, reports):
    job = a_job(reports)
    job.resources["clusters"] = "north"
    program("sbatch", "echo '7;north'")
    executor.run_job(job)
    calls = program("squeue", "echo 'CLUSTER: north'; echo '7_1|RUNNING'; echo '7_2|FAILED'")
    assert looked(executor, "7_1", "7_2") == ["7_1"]
    assert "--array" in calls.read_text()
    assert "--clusters=north" in calls.read_text()


def test_a_job_that_slurm_forgot_is_over(executor, program, reports, caplog):
    program("squeue", "echo '7|RUNNING'; echo '8|PENDING'; echo '9|RUNNING'")
    assert looked(executor, "7", "8", "9") == ["7", "8", "9"]
    program("squeue", "echo '9|PREEMPTED'")
    assert looked(executor, "7", "8", "9") == ["7", "8", "9"]
    assert looked(executor, "7", "8", "9") == []
    assert [report[:2] for report in reports] == [(0, "finished"), (1, "failed"), (2, "failed")]
    assert "Slurm does not know job 7 any more" in caplog.text
    assert reports[1][2].startswith("Slurm job 8 ended as CANCELLED. ")
    assert reports[2][2].startswith("Slurm job 9 ended as PREEMPTED. ")


@pytest.mark.parametrize(
    "reason", [AWAY, "Socket timed out on send/recv operation", "QOSMaxSubmitJobPerUserLimit", "AssocMaxSubmitJobLimit"]
)
def test_a_job_that_slurm_does_not_take_now_is_submitted_again(executor, job, program, reports, caplog, reason):
    program("sbatch", f"[ -e tried ] && echo 12 && exit; touch tried; echo 'sbatch: error: {reason}' >&2; exit 1")
    program("squeue", ":")
    executor.run_job(job)
    wait_until(lambda: reports)
    assert reports == [(3, "submitted", "12")]
    assert "Slurm does not take job 3 now; submitted again in 0 seconds: SLURM sbatch failed. " in caplog.text
    assert reason in caplog.text


def test_a_job_that_slurm_refuses_has_failed(executor, job, program, reports):
    program("sbatch", "echo 'sbatch: error: invalid partition specified: gpuu' >&2; exit 1")
    executor.run_job(job)
    ((number, what, message),) = reports
    assert (number, what) == (3, "failed")
    assert "invalid partition specified: gpuu" in message


def test_a_job_that_was_taken_although_sbatch_failed_is_not_submitted_twice(executor, job, program, reports, tmp_path):
    program("sbatch", "echo 5")
    executor.run_job(job)  # its former try
    program("sbatch", "echo 'Socket timed out on send/recv operation' >&2; exit 1")
    calls = program(
        "squeue",
        f"[ -e back ] || {{ touch back; echo '{AWAY}' >&2; exit 1; }}\n"
        "echo '5|rule_train_wildcards_tiny_small_0'\n"
        "echo '6|rule_train_wildcards_tiny_big_0'\n"
        "echo '7|rule_train_wildcards_tiny_small_0'",
    )
    executor.run_job(job)
    assert reports == [(3, "submitted", "5"), (3, "submitted", "7")]
    assert calls.read_text().count("sbatch ") == 2
    assert calls.read_text().count("squeue ") == 2
    (submitted,) = (info for info in executor.active_jobs if info.external_jobid == "7")
    assert submitted.aux["slurm_logfile"] == tmp_path / ".snakemake/slurm_logs/rule_train/tiny_small_0/7.log"


def test_ctrl_c_submits_nothing_more_and_cancels_all(executor, program, reports, monkeypatch, caplog):
    calls = program("sbatch", "echo 4")
    program("squeue", ":")
    executor.run_job(a_job(reports))
    monkeypatch.setattr(Executor, "seconds_before_submitting_again", 60)
    monkeypatch.setattr(SlurmExecutor, "shutdown", lambda self: None)  # it waits for the next look
    program("sbatch", f"echo '{AWAY}' >&2; exit 1")
    program("scancel", f"echo 'scancel: error: {AWAY}' >&2; exit 1")
    for jobid in (5, 6, 7):
        job = a_job(reports, jobid)
        job.log_info = lambda: None
        executor.run_jobs([job])
    wait_until(lambda: calls.read_text().count("sbatch") == 3)  # two at once
    began = time.monotonic()
    executor.cancel()
    assert time.monotonic() - began < 30
    assert sorted(report[:2] for report in reports[1:]) == [(5, "failed"), (6, "failed")]
    (name,) = re.findall(r"^scancel (--name=\S+)$", calls.read_text(), re.MULTILINE)
    assert f"Slurm's jobs go on (scancel: error: {AWAY}). Later: scancel {name}" in caplog.text


def test_a_group_that_cannot_be_submitted_has_failed(executor, reports, monkeypatch):
    def fail(executor, job):
        try:
            raise OSError("disk quota exceeded")
        except OSError:
            job.members[0]

    monkeypatch.setattr(SlurmExecutor, "run_job", fail)
    executor.run_job(a_job(reports, group=True))
    ((number, what, message),) = reports
    assert (number, what) == (3, "failed")
    assert "not submitted: disk quota exceeded" in message


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
