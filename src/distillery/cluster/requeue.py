"""What a training asks of Slurm: to be started again after a warning."""

import os
import re
import subprocess
import sys
import time

# What scontrol says when the controller is away or too busy.
NO_ANSWER = re.compile(r"Unable to contact slurm controller|[Tt]imed out|Zero Bytes were transmitted|standby mode")
# A training is warned 300 seconds before the end.
PATIENCE_SECONDS = 240
SECONDS_BEFORE_ASKING_AGAIN = 10


def requeue_this_job() -> bool:
    """Have Slurm start this job again if it was warned, and leave it alone if it was cancelled.

    Warned are jobs before their time limit (``sbatch --signal``) and jobs that make room for others (preemption): what
    is saved then continues as the same job, which costs whoever waits for it no retry. Slurm itself starts a job again
    after ``scontrol requeue`` and after a node's failure; after ``scancel`` it does not.

    Returns whether Slurm agreed; where requeueing is forbidden, the job ends with an error, and may be submitted again.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        facts = _facts(job)
        preempted = facts.get("PreemptTime", "None") != "None"
        # A cancelled job is COMPLETING by now, and so is one preempted without a time of grace.
        if facts.get("JobState") != "RUNNING" and not preempted:
            return False
        _scontrol("requeue", job)
    except RuntimeError as error:
        print(f"distillery: Slurm does not start job {job} again by itself: {error}", file=sys.stderr, flush=True)
        return False
    print(f"distillery: Slurm job {job} is started again to continue", file=sys.stderr, flush=True)
    return True


def _facts(job: str) -> dict[str, str]:
    """What Slurm says about a job, e.g. ``JobState``."""
    text = _scontrol("--oneliner", "show", "job", job)
    return {key: value for key, found, value in (word.partition("=") for word in text.split()) if found}


def _scontrol(*arguments: str) -> str:
    """Ask the controller, and again if it is away: everything is saved, so there is time until Slurm ends the job.

    Raises:
        RuntimeError: it refused, or did not answer at all.
    """
    began = time.monotonic()
    while True:
        try:
            answer = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=20)
            refused, reason = answer.returncode != 0, answer.stderr.strip()
        except subprocess.TimeoutExpired:
            refused, reason = True, "scontrol timed out"
        except OSError as error:
            raise RuntimeError(f"scontrol: {error.strerror}") from error
        if not refused:
            return answer.stdout
        if not NO_ANSWER.search(reason) or time.monotonic() - began > PATIENCE_SECONDS:
            raise RuntimeError(reason)
        time.sleep(SECONDS_BEFORE_ASKING_AGAIN)
