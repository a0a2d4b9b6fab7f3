"""Snakemake's Slurm plugin, taught what clusters do to people: workflow/rules/slurm.smk installs it into the driver.

Read in the plugin's version 2.8 and seen on a real cluster; without what is here

- a controller that does not answer for a minute (it is restarted, with all jobs running on) makes the plugin forget its
  jobs, and Snakemake waits for them for ever; so it does for a job that Slurm has forgotten before it was asked about,
  and for one that ended as PREEMPTED or NODE_FAIL;
- a job that the controller could not take, or that came over the site's limit of jobs, uses up its retries in a second;
- a job that was taken, but whose number got lost on a busy network, is sent twice;
- Ctrl-C first sends the jobs that wait to be sent, and cancels none while Slurm is being asked;
- while nothing ends, Slurm is asked ever more seldom, up to every 3 minutes.
"""

import re
import subprocess
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import snakemake_executor_plugin_slurm as plugin
from snakemake_executor_plugin_slurm import Executor
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.logging import LoggerExecutorInterface

# What Slurm's programs say when the controller is away, too busy, or just handing over to its substitute; and when a
# limit allows no more jobs at once.
NOT_NOW = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Message receive failure"
    r"|standby mode|Resource temporarily unavailable|(Assoc|QOS)\w*Submit\w*Limit"
)
SECONDS_BEFORE_SENDING_AGAIN = 30
# States that may pass in a moment, e.g. when a job is requeued, and that the plugin waits for if they do not.
PASSING = {"PREEMPTED", "NODE_FAIL"}


@dataclass
class Answers:
    """What Slurm has said about the jobs of a driver, answer by answer."""

    last: dict[str, str] = field(default_factory=dict)
    passing: Counter[str] = field(default_factory=Counter)

    def settle(self, states: dict[str, str], awaited: Iterable[str]) -> dict[str, str]:
        """What the plugin should believe, given squeue's states of jobs and the jobs that it waits for.

        A job that is missing in two answers one after another is over. If it ran, it counts as UNKNOWN: the plugin then
        lets Snakemake look whether its files are there. If it was last seen waiting, somebody cancelled it. A job that
        is in a passing state twice has failed.
        """
        believed = dict(states)
        for job in awaited:
            state = states.get(job)
            if state is not None and state not in PASSING:
                self.last[job] = state
                del self.passing[job]
                continue
            self.passing[job] += 1
            believed.pop(job, None)
            if self.passing[job] > 1:
                ran = self.last.get(job, "PENDING") != "PENDING"
                believed[job] = "FAILED" if state else "UNKNOWN" if ran else "CANCELLED"
        return believed


answers = Answers()
awaited: set[str] = set()  # the jobs that are being asked about
sent: set[str] = set()  # the jobs that Slurm has taken, by what the plugin knows
leaving = threading.Event()  # Ctrl-C

_query = plugin.query_job_status
_check_active_jobs = Executor.check_active_jobs
_run_job = Executor.run_job
_report_submission = Executor._report_job_submission_threadsafe
_report_error = Executor._report_job_error_threadsafe
_cancel = Executor.cancel


def install() -> None:
    """Teach the plugin; a second time changes nothing."""
    plugin.query_job_status = query_job_status
    for function in (check_active_jobs, run_job, cancel, cancel_jobs):
        setattr(Executor, function.__name__, function)
    Executor._report_job_submission_threadsafe = report_submission
    Executor._report_job_error_threadsafe = report_error


async def check_active_jobs(executor: Executor, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
    """Ask about jobs, at the interval that the profile says."""
    awaited.clear()
    # The first look, without jobs, may come before the plugin's own set-up: an error here would end all looks.
    # squeue shows neither jobs on other clusters nor each job of a waiting array.
    if active_jobs and not executor._submitted_job_clusters:
        awaited.update(job.external_jobid for job in active_jobs if (job.external_jobid or "").isdecimal())
    async for job in _check_active_jobs(executor, active_jobs):
        yield job
    executor.next_seconds_between_status_checks = None


async def query_job_status(command: str, logger: LoggerExecutorInterface) -> tuple[dict[str, str], float]:
    """Let no answer mean that nothing is known of any job, as of those that were just sent."""
    states, seconds = await _query(command, logger)
    if states is None:
        logger.warning(f"{command.split()[0]} does not say how the jobs are. They go on; it is asked again later.")
        return {}, 0.0
    if not command.startswith("squeue"):
        return states, seconds  # sacct may know nothing of a job yet, and shows states of its former starts
    believed = answers.settle(states, awaited)
    for job in awaited:
        if job in believed and believed[job] != states.get(job):
            logger.warning(f"Slurm's job {job} is over: {states.get(job, 'Slurm knows it no more')}.")
    return believed, seconds


def run_job(executor: Executor, job: JobExecutorInterface) -> None:
    """Send a job. What goes wrong before that is its error; for a group, the plugin loses it, and waits for ever."""
    try:
        _run_job(executor, job)
    except Exception as error:
        executor._report_job_error_threadsafe(SubmittedJobInfo(job), f"not sent: {error.__context__ or error}")


def report_submission(executor: Executor, job_info: SubmittedJobInfo) -> None:
    """Remember a job that was taken."""
    sent.add(str(job_info.external_jobid))
    _report_submission(executor, job_info)


def report_error(executor: Executor, job_info: SubmittedJobInfo, msg: str) -> None:
    """Let a job that Slurm does not take now wait, instead of failing."""
    job = job_info.job
    line = next((line.strip() for line in msg.splitlines() if NOT_NOW.search(line)), None)
    if job_info.external_jobid or line is None:
        _report_error(executor, job_info, msg)
        return
    executor.logger.warning(
        f"Slurm does not take job {job.jobid} now; sent again in {SECONDS_BEFORE_SENDING_AGAIN} seconds: {line}"
    )
    found: str | None = None
    answered = False
    while not found and not answered and not leaving.wait(SECONDS_BEFORE_SENDING_AGAIN):
        answered, found = taken_unawares(executor, job)
    if leaving.is_set():
        _report_error(executor, job_info, msg)
    elif found:
        executor.logger.info(f"Job {job.jobid} was taken after all, as Slurm's job {found}.")
        log = executor.slurm_logdir / f"rule_{job.name}" / plugin.get_job_wildcards(job) / f"{found}.log"
        executor._report_job_submission_threadsafe(SubmittedJobInfo(job, found, {"slurm_logfile": log}))
    else:
        executor._job_submission_executor.submit(executor.run_job, job)


def taken_unawares(executor: Executor, job: JobExecutorInterface) -> tuple[bool, str | None]:
    """Whether Slurm answers, and its number for a job that it took although it did not say so."""
    if job.is_group():
        return True, None  # groups have no name of their own
    command = ["squeue", "--noheader", "--states=all", f"--name={executor.run_uuid}", "--format=%i|%k"]
    answer = ask(*command)
    if answer is None or answer.returncode:
        return False, None
    wildcards = plugin.get_job_wildcards(job)
    comment = f"rule_{job.name}" + (f"_wildcards_{wildcards}" if wildcards else "")
    jobs = dict(line.split("|", 1) for line in answer.stdout.splitlines() if "|" in line)
    return True, next((number for number, its in jobs.items() if its.strip() == comment and number not in sent), None)


def cancel(executor: Executor) -> None:
    """Send no more jobs, then cancel."""
    leaving.set()
    executor._job_submission_executor.shutdown(wait=True, cancel_futures=True)
    _cancel(executor)


def cancel_jobs(executor: Executor, active_jobs: list[SubmittedJobInfo]) -> None:
    """Cancel whatever this driver sent: while Slurm is being asked, Snakemake's own list of its jobs is empty."""
    if not sent:
        return
    command = ["scancel", f"--name={executor.run_uuid}"]
    command += ["--clusters=all"] if executor._submitted_job_clusters else []
    answer = ask(*command)
    if answer is None or answer.returncode:
        reason = "it does not answer" if answer is None else answer.stderr.strip()
        executor.logger.error(f"Slurm's jobs go on ({reason}). Later: {' '.join(command)}")


def ask(*command: str) -> subprocess.CompletedProcess[str] | None:
    """Run one of Slurm's programs; None if it does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return None
