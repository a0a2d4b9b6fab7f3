"""The configuration: what may be written (schema), what it means (experiment, spec), what it needs (plan)."""

from distillery.experiment.experiment import Experiment
from distillery.experiment.loading import load_experiment, load_experiments
from distillery.experiment.spec import RunSpec

__all__ = ["Experiment", "RunSpec", "load_experiment", "load_experiments"]
