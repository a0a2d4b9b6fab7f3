"""The loader belongs to the machine: a run may be trained with either, and change it on the way."""

import json

import pytest

from distillery.cluster.signals import Stopped
from distillery.training.run import make_run

pytest.importorskip("nvidia.dali", reason="the extra `dali` is for Linux")


def job(workplace, results, loader):
    return workplace.job(results=results, loader=loader, workers=1 if loader == "dali" else 0)


def weights(made):
    return (made.folder / "weights.safetensors").read_bytes()


def loaders(made):
    record = json.loads((made.folder / "run.json").read_text())
    return [session["loader"] for session in record["sessions"]], record["digest"]


def test_plain_pngs_of_the_right_size_train_the_same_network_to_the_byte(workplace, stop_after):
    """Nothing is lost in decoding and nothing is resized: only a wrong crop or order could make a difference."""
    first, second, mixed = (
        job(workplace, name, kind) for name, kind in (("a", "torch"), ("b", "dali"), ("c", "torch"))
    )
    make_run(first)
    make_run(second)
    assert weights(second) == weights(first)

    stop_after(3)
    with pytest.raises(Stopped):
        make_run(mixed)
    make_run(job(workplace, "c", "dali"))
    assert weights(mixed) == weights(first)
    digests = {loaders(made)[1] for made in (first, second, mixed)}
    assert len(digests) == 1
    assert [loaders(made)[0] for made in (first, second, mixed)] == [["torch"], ["dali"], ["torch", "dali"]]
