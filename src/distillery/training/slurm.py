"""What a training asks of Slurm: to be started again after it was told to stop."""

import os
import subprocess
import sys


def requeue_this_job() -> bool:
    """Have Slurm start this job again if it was warned, and leave it alone if somebody wants it to end.

    Warned are jobs before their time limit (``sbatch --signal``) and jobs that make room for others (preemption): what
    is saved then continues as the same job, which costs whoever waits for it no retry. Slurm itself starts a job again
    after ``scontrol requeue`` and after a node's failure; after ``scancel`` nobody does.

    Returns whether Slurm agreed; where requeueing is forbidden, the job ends with an error, and may be sent anew.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    facts = _facts(job)
    preempted = facts.get("PreemptTime", "None") != "None"
    # A cancelled job is COMPLETING by now, and so is one preempted without a time of grace.
    if facts.get("JobState") != "RUNNING" and not preempted:
        return False
    answer = _scontrol("requeue", job)
    if answer is None or answer.returncode:
        reason = "scontrol is missing or does not answer" if answer is None else answer.stderr.strip()
        print(f"distillery: Slurm does not start job {job} again by itself: {reason}", file=sys.stderr, flush=True)
        return False
    print(f"distillery: Slurm job {job} is started again to continue", file=sys.stderr, flush=True)
    return True


def _facts(job: str) -> dict[str, str]:
    """What Slurm says about a job, e.g. ``JobState``."""
    answer = _scontrol("--oneliner", "show", "job", job)
    text = "" if answer is None else answer.stdout
    return {key: value for key, found, value in (word.partition("=") for word in text.split()) if found}


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
