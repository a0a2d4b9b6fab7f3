"""``executor: distillery-slurm``: Snakemake finds executor plugins as top-level packages with this prefix."""

from distillery.cluster.slurm_executor import Executor, ExecutorSettings, common_settings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]
