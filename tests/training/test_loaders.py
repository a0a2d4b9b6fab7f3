"""The loader belongs to the machine: a run may be trained with either, and change it on the way."""

import json

import pytest

from distillery.cluster.signals import Stopped
from distillery.experiment import load_experiment
from distillery.training.job import Job, Machine
from distillery.training.metric_logger import MetricLogger
from distillery.training.run import make_run

pytest.importorskip("nvidia.dali", reason="the extra `dali` is for Linux")


def job(workplace, results, loader):
    folder = workplace.folder / results
    if not folder.exists():
        folder.mkdir()
        (folder / "datasets").symlink_to(workplace.results / "datasets")
    machine = Machine(workers=1 if loader == "dali" else 0, threads=1, loader=loader)
    return Job(load_experiment(workplace.experiment), "small", 0, folder, machine)


def weights(made):
    return (made.folder / "weights.safetensors").read_bytes()


def loaders(made):
    record = json.loads((made.folder / "run.json").read_text())
    return [session["loader"] for session in record["sessions"]], record["digest"]


def test_plain_pngs_of_the_right_size_train_the_same_network_to_the_byte(workplace, monkeypatch):
    """Nothing is lost in decoding and nothing is resized: only a wrong crop or order could make a difference."""
    first, second, mixed = (
        job(workplace, name, kind) for name, kind in (("a", "torch"), ("b", "dali"), ("c", "torch"))
    )
    make_run(first)
    make_run(second)
    assert weights(second) == weights(first)

    original, taken = MetricLogger.step, []

    def stop_at_third(self, *arguments):
        taken.append(1)
        if len(taken) == 3:
            import signal

            signal.raise_signal(signal.SIGTERM)
        return original(self, *arguments)

    monkeypatch.setattr(MetricLogger, "step", stop_at_third)
    with pytest.raises(Stopped):
        make_run(mixed)
    make_run(job(workplace, "c", "dali"))
    assert weights(mixed) == weights(first)
    digests = {loaders(made)[1] for made in (first, second, mixed)}
    assert len(digests) == 1
    assert [loaders(made)[0] for made in (first, second, mixed)] == [["torch"], ["dali"], ["torch", "dali"]]
