"""Where a run's lock and checkpoints lie."""

from itertools import product
from pathlib import Path
from types import SimpleNamespace

from distillery.training.job import Job


def test_no_two_runs_share_a_lock():
    names = ("x", "x-y", "y", "y-z", "z", "x-y-z", "seed1", "z-seed1", "lock")
    runs = list(product(names, names, (0, 1, 10)))
    locks = {Job(SimpleNamespace(name=experiment), run, seed, Path()).lock for experiment, run, seed in runs}
    assert len(locks) == len(runs)
    # A lock is never another one's folder.
    assert {len(lock.parts) for lock in locks} == {5}
