"""What the driver makes of Slurm's answers. The plugin here is the real one; tests/slurm asks the real Slurm."""

import asyncio
import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import snakemake_executor_plugin_slurm as plugin
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

from distillery.cluster import snakemake_slurm as module

AWAY = "Unable to contact slurm controller (connect failure)"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(module, "answers", module.Answers())
    monkeypatch.setattr(module, "SECONDS_BEFORE_SENDING_AGAIN", 0.05)
    for shared in (module.awaited, module.sent):
        shared.clear()
    yield
    module.leaving.clear()


@pytest.mark.parametrize(
    ("said", "believed"),
    [
        (["RUNNING", "COMPLETED"], ["RUNNING", "COMPLETED"]),
        (["RUNNING", None, "RUNNING", None], ["RUNNING", None, "RUNNING", None]),
        (["RUNNING", None, None], ["RUNNING", None, "UNKNOWN"]),
        (["COMPLETING", None, None], ["COMPLETING", None, "UNKNOWN"]),
        (["PENDING", None, None], ["PENDING", None, "CANCELLED"]),
        ([None, None], [None, "CANCELLED"]),
        (["RUNNING", "PREEMPTED", "PENDING", "RUNNING"], ["RUNNING", None, "PENDING", "RUNNING"]),
        (["RUNNING", "PREEMPTED", "PREEMPTED"], ["RUNNING", None, "FAILED"]),
        (["RUNNING", "NODE_FAIL", "NODE_FAIL"], ["RUNNING", None, "FAILED"]),
        (["RUNNING", "NODE_FAIL", "PENDING"], ["RUNNING", None, "PENDING"]),
    ],
)
def test_what_passes_is_waited_for_and_what_stays_is_over(said, believed):
    answers = module.Answers()
    for state, expected in zip(said, believed, strict=True):
        states = {"8": "RUNNING"} if state is None else {"7": state, "8": "RUNNING"}
        assert answers.settle(states, {"7", "8"}).get("7") == expected


def test_jobs_of_others_are_left_alone():
    assert module.Answers().settle({"9": "PREEMPTED"}, set()) == {"9": "PREEMPTED"}


class Executor(plugin.Executor):
    """The plugin's executor, with two jobs in the queue and no workflow around it."""

    def __init__(self, folder: Path) -> None:
        settings = SimpleNamespace(
            status_attempts=5, status_command="squeue", init_seconds_before_status_checks=40, keep_successful_logs=True
        )
        remote = SimpleNamespace(seconds_between_status_checks=30)
        self.workflow = SimpleNamespace(executor_settings=settings, remote_execution_settings=remote)
        self.logger = logging.getLogger("driver")
        self.run_uuid, self.slurm_logdir = "u-1", folder
        self._job_submission_executor = ThreadPoolExecutor(1)
        self._main_event_loop, self._preemption_warning = None, False
        self._submitted_job_clusters: set[str] = set()
        self._status_query_calls = self._status_query_failures = 0
        self._status_query_total_seconds = self._status_query_max_seconds = 0.0
        self._status_query_min_seconds, self._status_query_cycle_rows = None, []
        self._next_seconds_between_status_checks = None
        self.status_rate_limiter = asyncio.Semaphore()
        self.told: list[tuple[str, str, str]] = []

    def report_job_success(self, job_info):
        self.told.append(("success", job_info.external_jobid, ""))

    def report_job_error(self, job_info, msg=None, **_):
        self.told.append(("error", job_info.external_jobid, msg))

    def report_job_submission(self, job_info, register_job=True):
        self.told.append(("sent", job_info.external_jobid, str(job_info.aux["slurm_logfile"])))


@pytest.fixture
def executor(tmp_path, monkeypatch):
    module.install()
    return Executor(tmp_path)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Put a program of Slurm where it is found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho {name} $* >> {tmp_path}/asked\n{script}\n")
        path.chmod(0o755)
        return tmp_path / "asked"

    write("scontrol", "echo 'MinJobAge = 300 sec'")
    return write


def job(name="train", group=False):
    return SimpleNamespace(jobid=3, name=name, wildcards=["tiny", "small", "0"], is_group=lambda: group)


def checked(executor, *numbers) -> list[str]:
    """The jobs that are still waited for after a look."""

    async def look():
        infos = [SubmittedJobInfo(job(), number, {}) for number in numbers]
        return [info.external_jobid async for info in executor.check_active_jobs(infos)]

    return asyncio.run(look())


def test_no_answer_forgets_no_job(executor, program, caplog):
    program("squeue", f"echo '{AWAY}' >&2; exit 1")
    assert checked(executor, "7", "8") == ["7", "8"]
    assert "squeue does not say how the jobs are" in caplog.text
    program("squeue", "echo '7|COMPLETED'; echo '8|RUNNING'")
    assert checked(executor, "7", "8") == ["8"]
    assert executor.told == [("success", "7", "")]
    assert executor.next_seconds_between_status_checks == 30


def test_the_first_look_may_come_before_the_plugin_is_set_up(executor):
    settings = executor.workflow
    vars(executor).clear()
    executor.workflow, executor.logger, executor._next_seconds_between_status_checks = (
        settings,
        logging.getLogger(),
        None,
    )
    assert checked(executor) == []


def test_a_job_that_slurm_forgot_is_over(executor, program, caplog):
    program("squeue", "echo '7|RUNNING'; echo '8|PENDING'; echo '9|RUNNING'")
    assert checked(executor, "7", "8", "9") == ["7", "8", "9"]
    program("squeue", "echo '9|PREEMPTED'")
    assert checked(executor, "7", "8", "9") == ["7", "8", "9"]
    assert checked(executor, "7", "8", "9") == []
    assert [(kind, number) for kind, number, _ in executor.told] == [("success", "7"), ("error", "8"), ("error", "9")]
    assert "Slurm's job 7 is over: Slurm knows it no more." in caplog.text
    assert "Slurm's job 9 is over: PREEMPTED." in caplog.text


def test_jobs_on_other_clusters_and_of_arrays_are_not_missed(executor, program):
    program("squeue", ":")
    for _ in range(3):
        assert checked(executor, "7_1") == ["7_1"]
    executor._submitted_job_clusters.add("other")
    for _ in range(3):
        assert checked(executor, "7") == ["7"]
    assert not executor.told


@pytest.mark.parametrize(
    "line",
    [
        f"sbatch: error: Batch job submission failed: {AWAY}",
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: QOSMaxSubmitJobPerUserLimit",
        "sbatch: error: AssocMaxSubmitJobLimit",
    ],
)
def test_what_slurm_does_not_take_now_is_sent_again(executor, program, monkeypatch, caplog, line):
    again = []
    monkeypatch.setattr(plugin.Executor, "run_job", lambda executor, job: again.append(job.jobid))
    program("squeue", ":")
    executor._report_job_error_threadsafe(
        SubmittedJobInfo(job()), f"SLURM sbatch failed. The error message was '{line}'."
    )
    executor._job_submission_executor.shutdown()
    assert again == [3]
    assert not executor.told
    assert line in caplog.text


def test_what_slurm_refuses_is_an_error(executor, program):
    refused = "SLURM sbatch failed. The error message was 'sbatch: error: invalid partition specified: gpuu'"
    executor._report_job_error_threadsafe(SubmittedJobInfo(job()), refused)
    assert executor.told == [("error", None, refused)]


def test_a_job_that_was_taken_without_a_word_is_not_sent_twice(executor, program, tmp_path, monkeypatch):
    monkeypatch.setattr(plugin.Executor, "run_job", lambda *_: pytest.fail("sent twice"))
    module.sent.add("5")  # its former try
    asked = program(
        "squeue",
        f"[ -e {tmp_path}/back ] || {{ touch {tmp_path}/back; echo '{AWAY}' >&2; exit 1; }}\n"
        "echo '5|rule_train_wildcards_tiny_small_0'\n"
        "echo '6|rule_train_wildcards_tiny_big_0'\n"
        "echo '7|rule_train_wildcards_tiny_small_0'",
    )
    executor._report_job_error_threadsafe(SubmittedJobInfo(job()), "Socket timed out on send/recv operation")
    executor._job_submission_executor.shutdown()
    assert executor.told == [("sent", "7", f"{tmp_path}/rule_train/tiny_small_0/7.log")]
    assert "7" in module.sent
    assert asked.read_text().count("--name=u-1") == 2


def test_ctrl_c_sends_nothing_more_and_cancels_all(executor, program, monkeypatch, caplog):
    monkeypatch.setattr(module, "SECONDS_BEFORE_SENDING_AGAIN", 60)
    monkeypatch.setattr(plugin.Executor, "shutdown", lambda _: None)
    executor.active_jobs, executor.lock = [], module.threading.Lock()
    asked = program("scancel", f"echo 'scancel: error: {AWAY}' >&2; exit 1")
    executor._report_job_submission_threadsafe(SubmittedJobInfo(job(), "4", {"slurm_logfile": "4.log"}))
    for _ in range(3):
        executor._job_submission_executor.submit(
            executor._report_job_error_threadsafe, SubmittedJobInfo(job()), f"sbatch: {AWAY}"
        )
    time.sleep(0.2)
    executor.cancel()
    assert [kind for kind, *_ in executor.told] == ["sent", "error"]
    assert asked.read_text() == "scancel --name=u-1\n"
    assert re.search(r"Slurm's jobs go on \(.*connect failure\)\)\. Later: scancel --name=u-1", caplog.text)


def test_a_group_that_cannot_be_sent_is_an_error(executor, monkeypatch):
    def fail(executor, job):
        try:
            raise OSError("disk quota exceeded")
        except OSError:
            job.rule.name  # noqa: B018

    monkeypatch.setattr(module, "_run_job", fail)
    executor.run_job(job(group=True))
    assert executor.told == [("error", None, "not sent: disk quota exceeded")]
