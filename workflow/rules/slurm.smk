# Patience that Snakemake's Slurm plugin lacks. Sites restart Slurm's controller while jobs go on, for a minute or an hour.
# Meanwhile it cannot be asked, and takes no jobs. The plugin (2.8) forgets the jobs that it could not ask about, and
# then waits for them for ever; and it takes a job that was not accepted for one that failed, until no retries are left.
import time
from functools import wraps

import snakemake_executor_plugin_slurm as slurm_plugin

NO_ANSWER = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
)
SECONDS_BEFORE_SENDING_AGAIN = 30


def ask_again_later(query):
    """Let no answer about the jobs mean that nothing is known of any, as of those that were just sent."""

    @wraps(query)
    async def ask(command, logger):
        states, seconds = await query(command, logger)
        if states is None:
            logger.warning(
                "Slurm does not say how its jobs are. They go on; it is asked again later."
            )
            return {}, 0.0
        return states, seconds

    return ask


def send_again_later(report_error):
    """Let a job that could not be handed over wait for Slurm, instead of failing."""

    @wraps(report_error)
    def report(executor, job_info, msg):
        if job_info.external_jobid or not any(sign in msg for sign in NO_ANSWER):
            report_error(executor, job_info, msg)
            return
        executor.logger.warning(
            f"Slurm takes no jobs. Job {job_info.job.jobid} is sent again in {SECONDS_BEFORE_SENDING_AGAIN} seconds."
        )
        time.sleep(SECONDS_BEFORE_SENDING_AGAIN)
        executor._job_submission_executor.submit(executor.run_job, job_info.job)

    return report


# Both are names inside the plugin: another version may have mended itself, under other names.
if hasattr(slurm_plugin, "query_job_status"):
    slurm_plugin.query_job_status = ask_again_later(slurm_plugin.query_job_status)
if hasattr(slurm_plugin.Executor, "_report_job_error_threadsafe"):
    slurm_plugin.Executor._report_job_error_threadsafe = send_again_later(
        slurm_plugin.Executor._report_job_error_threadsafe
    )
