"""``executor: distillery-slurm``: Snakemake finds executor plugins as top-level packages with this prefix.

It imports them whenever it starts, also in each job, before it reads a workflow.
"""

from contextlib import suppress

from distillery.cluster.slurm_executor import Executor, ExecutorSettings, common_settings
from distillery.imports import without

# Trap: to take a Snakefile's path apart, Snakemake imports smart_open, and that boto3, where DVC brought it: a tenth of
# a job's start. Rules cannot be included from S3 then.
with suppress(ImportError), without("boto3"):
    import smart_open  # type: ignore[import-untyped]  # noqa: F401

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
