"""The configuration: what may be written (schema), how it is read (reading), what it means (resolve)."""

from distillery.experiment.resolving import Experiment, RunSpec, load_experiment, load_experiments

__all__ = ["Experiment", "RunSpec", "load_experiment", "load_experiments"]
