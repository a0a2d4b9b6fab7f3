"""What clusters do to runs: signals, one owner a run, requeueing, several processes, Slurm. Manual: docs/cluster.md."""
