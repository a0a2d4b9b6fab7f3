"""What an experiment of runs amounts to: tables with verdicts, figures, and the provenance of each run."""
