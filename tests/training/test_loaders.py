"""The loader belongs to the machine: a run may be trained with any, and change it on the way."""

import json

import pytest

from distillery.cluster.signals import Stopped
from distillery.data import memory
from distillery.errors import UserError
from distillery.training.run import make_run

pytestmark = pytest.mark.slow

# Looks at channels of both networks before an epoch, at hidden labels, and at everything else that images come for.
MATCHED = """taught: {model: cifar_resnet8, recipe: tiny, teacher: big, labels: 6,
             objective: {ce: {}, kd: {temperature: 2}, mgd: {weight: 0.01, update_every: 1, update_images: 20}}}
    bake:   {model: cifar_resnet8, recipe: tiny, batch: 12, repeats: 1, objective: {ce: {}, bake: {}}}
    usi:    {model: cifar_resnet8, recipe: tiny, teacher: big, repeats: 2, mix: {mixup: 0.8, cutmix: 1.0},
             ema: {decay: 0.9}, objective: {kd: {temperature: 1}}}
"""


def job(workplace, results, loader):
    return workplace.job(results=results, loader=loader, workers=1 if loader == "dali" else 0)


@pytest.fixture
def methods(workplace):
    """The tiny workplace with runs that want images in all the ways there are."""
    text = workplace.experiment.read_text()
    begin, end = text.index("taught:"), text.index("  tables:")
    workplace.experiment.write_text(text[:begin] + MATCHED + text[end:])
    workplace.make("big")
    return workplace


def weights(made):
    return (made.folder / "weights.safetensors").read_bytes()


def loaders(made):
    record = json.loads((made.folder / "run.json").read_text())
    return [session["loader"] for session in record["sessions"]], record["digest"]


@pytest.mark.parametrize("run", ["taught", "bake", "usi"])
def test_images_in_memory_train_the_same_network_to_the_byte(methods, stop_after, monkeypatch, run):
    def made(results, loader, **machine):
        return methods.job(run, results=results, loader=loader, **machine)

    def outcome(of):
        return weights(of), (of.folder / "history.csv").read_bytes()

    workers, kept, mixed = made("a", "torch", workers=1), made("b", "auto"), made("c", "memory")
    make_run(workers)
    make_run(kept)
    assert outcome(kept) == outcome(workers)
    stop_after(2)
    with pytest.raises(Stopped):
        make_run(mixed)
    monkeypatch.undo()
    make_run(made("c", "torch"))
    assert outcome(mixed) == outcome(workers)
    assert [loaders(each)[0] for each in (workers, kept, mixed)] == [["torch"], ["memory"], ["memory", "torch"]]


def test_what_does_not_fit_is_left_to_workers_unless_memory_is_asked_for(workplace, monkeypatch):
    monkeypatch.setattr(memory, "MOST_BYTES", 100)
    found = []
    for results, loader in (("a", "auto"), ("b", "memory")):
        made = job(workplace, results, loader)
        make_run(made)
        found.append(loaders(made)[0])
    assert found == [["torch"], ["memory"]]


def test_what_memory_cannot_do_is_left_to_workers_or_refused_in_one_line(workplace):
    path = workplace.folder / "config/recipes/tiny.yaml"
    path.write_text(path.read_text() + "  - {name: grayscale}\n")
    made = job(workplace, "a", "auto")
    make_run(made)
    assert loaders(made)[0] == ["torch"]
    with pytest.raises(UserError) as caught:
        make_run(job(workplace, "b", "memory"))
    assert str(caught.value) == (
        "--loader: 'memory' does horizontal_flip and random_crop only, but the recipe of small/seed0 says grayscale; "
        "use torch"
    )


def test_plain_pngs_of_the_right_size_train_the_same_network_to_the_byte(workplace, stop_after):
    pytest.importorskip("nvidia.dali", reason="the extra `dali` is for Linux")
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
