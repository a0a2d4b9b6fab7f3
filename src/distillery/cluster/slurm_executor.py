"""Snakemake's executor for Slurm, patient with what happens on clusters: ``executor: distillery-slurm``.

It is snakemake-executor-plugin-slurm, with its own way to ask for the states of jobs. Read in the plugin's version 2.8
and seen on a real cluster; by itself

- a controller that does not answer for a minute (it is restarted, with all jobs running on) makes the plugin forget its
  jobs, and Snakemake waits for them for ever; so it does for a job that Slurm has forgotten before it was asked about,
  and for one that ended as PREEMPTED or NODE_FAIL;
- a job that the controller could not take, or that came over the site's limit of jobs, uses up its retries in a second;
- a job that was taken, but whose number got lost on a busy network, is submitted twice;
- Ctrl-C first submits the jobs that wait to be submitted, and cancels none while Slurm is being asked;
- while nothing ends, Slurm is asked ever more seldom, up to every 3 minutes.
"""

import asyncio
import re
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Optional

from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings as SlurmExecutorSettings
from snakemake_executor_plugin_slurm import common_settings as common_settings
from snakemake_executor_plugin_slurm import get_job_wildcards
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface

# What Slurm's programs say when the controller is away, too busy, or just handing over to its substitute; and when a
# limit allows no more jobs at once.
NOT_NOW = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Message receive failure"
    r"|standby mode|Resource temporarily unavailable|(Assoc|QOS)\w*Submit\w*Limit"
)
FAILURES = {"BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT"}
# States that a job which is requeued leaves in a moment, and that are final for others.
TRANSIENT = {"PREEMPTED", "NODE_FAIL"}


@dataclass
class ExecutorSettings(SlurmExecutorSettings):  # type: ignore[misc]
    """The plugin's settings, under this executor's prefix, e.g. ``--distillery-slurm-requeue``."""

    # Snakemake's parser does not know `str | None`.
    status_command: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Not supported: squeue is always asked."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unused = {"status_command": None, "status_attempts": 5, "init_seconds_before_status_checks": 40}
        for name, default in unused.items():
            if getattr(self, name) != default:
                raise WorkflowError(
                    f"distillery-slurm-{name.replace('_', '-')}: not supported; squeue is asked every "
                    "seconds-between-status-checks, until it answers"
                )


class JobStates:
    """How jobs ended, judged by what Slurm says about them look after look."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._doubts: Counter[str] = Counter()

    def end(self, job: str, state: str | None) -> str | None:
        """The state that a job (Slurm's number) ended in, given what squeue says now; None while it goes on.

        A job that is missing twice in a row has ended: as CANCELLED if it was last seen waiting; else as UNKNOWN, and
        its files decide. So has one that is in a transient state twice in a row.
        """
        if state is not None and state not in TRANSIENT:
            self._last[job] = state
            del self._doubts[job]
            return state if state == "COMPLETED" or state in FAILURES else None
        self._doubts[job] += 1
        if self._doubts[job] == 1:
            return None
        return state or ("CANCELLED" if self._last.get(job, "PENDING") == "PENDING" else "UNKNOWN")


class Executor(SlurmExecutor):  # type: ignore[misc]
    """Submits jobs with sbatch, and asks squeue for all of them at once, at a constant interval."""

    seconds_before_submitting_again = 30.0

    def __post_init__(self, test_mode: bool = False) -> None:
        super().__post_init__(test_mode)
        self._states = JobStates()
        self._submitted: set[str] = set()  # Slurm's numbers
        self._cancelled = threading.Event()

    # --- asking for states ------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Report the jobs that have ended and yield the others; all of them if Slurm does not answer."""
        # The first look, without jobs, may come before __post_init__, and an error here would end all looks.
        if not active_jobs:
            return
        command = ["squeue", "--noheader", "--array", "--states=all", f"--name={self.run_uuid}", "--format=%i|%T"]
        if self._submitted_job_clusters:
            command.append(f"--clusters={','.join(sorted(map(str, self._submitted_job_clusters)))}")
        answer = await asyncio.to_thread(_ask, *command)
        if answer.returncode:
            self.logger.warning(
                f"squeue does not say how the jobs are. They go on; it is asked again later: {answer.stderr.strip()}"
            )
        states = dict(line.strip().split("|", 1) for line in answer.stdout.splitlines() if "|" in line)
        for job in active_jobs:
            number = str(job.external_jobid)
            ended = None if answer.returncode else self._states.end(number, states.get(number))
            if ended is None:
                yield job
            else:
                self._report_end(job, ended)

    def _report_end(self, job: SubmittedJobInfo, state: str) -> None:
        log = job.aux["slurm_logfile"]
        if state == "COMPLETED":
            self.report_job_success(job)
            if not self.workflow.executor_settings.keep_successful_logs:
                with suppress(OSError):
                    log.unlink(missing_ok=True)
        elif state == "UNKNOWN":
            self.logger.warning(f"Slurm does not know job {job.external_jobid} any more; its files show how it ended.")
            self.report_job_success(job)
        else:
            # Snakemake appends a sentence.
            self.report_job_error(job, msg=f"Slurm job {job.external_jobid} ended as {state}. ", aux_logs=[str(log)])

    # --- submitting -------------------------------------------------------------------------------------------------

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit a job. The plugin loses a group that cannot be submitted, and waits for it for ever."""
        try:
            super().run_job(job)
        except Exception as error:
            self._report_job_error_threadsafe(SubmittedJobInfo(job), f"not submitted: {error.__context__ or error}")

    def _report_job_submission_threadsafe(self, job_info: SubmittedJobInfo) -> None:
        self._submitted.add(str(job_info.external_jobid))
        super()._report_job_submission_threadsafe(job_info)

    def _report_job_error_threadsafe(self, job_info: SubmittedJobInfo, msg: str) -> None:
        """Let a job that Slurm does not take now wait, instead of failing."""
        job = job_info.job
        line = next((line.strip() for line in msg.splitlines() if NOT_NOW.search(line)), None)
        if job_info.external_jobid or line is None:
            super()._report_job_error_threadsafe(job_info, msg)
            return
        seconds = self.seconds_before_submitting_again
        self.logger.warning(
            f"Slurm does not take job {job.jobid} now; submitted again in {seconds:.0f} seconds: {line}"
        )
        answered, number = False, None
        while not answered and not self._cancelled.wait(seconds):
            answered, number = self._taken(job)
        if self._cancelled.is_set():
            super()._report_job_error_threadsafe(job_info, msg)
        elif number:
            self.logger.info(f"Job {job.jobid} was taken after all, as Slurm job {number}.")
            log = self.slurm_logdir / f"rule_{job.name}" / get_job_wildcards(job) / f"{number}.log"
            self._report_job_submission_threadsafe(SubmittedJobInfo(job, number, {"slurm_logfile": log}))
        else:
            self._job_submission_executor.submit(self.run_job, job)

    def _taken(self, job: JobExecutorInterface) -> tuple[bool, str | None]:
        """Whether Slurm answers, and its number of a job that it took although sbatch failed."""
        if job.is_group():
            return True, None  # the comments of two groups may be the same
        answer = _ask("squeue", "--noheader", "--states=all", f"--name={self.run_uuid}", "--format=%i|%k")
        if answer.returncode:
            return False, None
        wildcards = get_job_wildcards(job)
        comment = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
        jobs = dict(line.split("|", 1) for line in answer.stdout.splitlines() if "|" in line)
        found = (number for number, its in jobs.items() if its.strip() == comment and number not in self._submitted)
        return True, next(found, None)

    # --- Ctrl-C -----------------------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """Submit no more jobs, then cancel."""
        self._cancelled.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel whatever was submitted: while Slurm is being asked, Snakemake's own list of jobs is empty."""
        if not self._submitted:
            return
        command = ["scancel", f"--name={self.run_uuid}"]
        command += ["--clusters=all"] if self._submitted_job_clusters else []
        answer = _ask(*command)
        if answer.returncode:
            self.logger.error(f"Slurm's jobs go on ({answer.stderr.strip()}). Later: {' '.join(command)}")


def _ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs; one that does not end within a minute has failed."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=f"{command[0]}: no answer")
