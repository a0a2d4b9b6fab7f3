"""A finished run's first steps, taken again, give the weights of its record, or it is said why not."""

import pytest

from distillery.cli import main
from distillery.distill.losses.cross_entropy import CrossEntropy
from distillery.results import read_json, write_sealed
from distillery.training import replay

pytestmark = pytest.mark.slow


@pytest.fixture
def place(workplace):
    workplace.make("big")
    workplace.edit(
        "small:  {model: cifar_resnet8, recipe: tiny}", "small:  {model: cifar_resnet14, weights: 'run:big'}"
    )
    workplace.make("small")
    workplace.edit("seeds: [0, 1]", "seeds: [0]")
    return workplace


def verify(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place.experiment), "--results", str(place.results), "--replay", "--workers", "0"])
    said = capsys.readouterr()
    faults = [line for line in said.err.splitlines() if line.startswith("distillery: ")]
    return ended.value.code, said.out.splitlines()[1:], faults


def record_of(place):
    return place.results / "tiny" / "big" / "seed0" / "run.json"


def other_loss(monkeypatch):
    right = CrossEntropy.forward
    monkeypatch.setattr(CrossEntropy, "forward", lambda self, inputs: 1.001 * right(self, inputs))


def test_the_same_code_gives_the_same_weights_and_leaves_nothing_behind(place, capsys):
    before = {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()}
    code, lines, faults = verify(place, capsys)
    assert (code, faults) == (0, [])
    assert lines == [
        "big/seed0: its first 4 steps taken again: the same weights",
        "small/seed0: imported again: the same weights",
    ]
    assert {path: path.read_bytes() for path in place.results.rglob("*") if path.is_file()} == before


def test_a_changed_loss_is_found(place, capsys, monkeypatch):
    other_loss(monkeypatch)
    code, lines, (fault,) = verify(place, capsys)
    assert (code, len(lines)) == (2, 1)
    assert "big/seed0/run.json: its first 4 steps, taken again, give other weights, on a machine and with" in fault


def test_on_another_machine_other_weights_are_no_fault_and_are_said(place, capsys, monkeypatch):
    record = read_json(record_of(place), "it")
    record["sessions"][0]["provenance"]["cpu"] = "Another"
    write_sealed(record_of(place), record)
    assert verify(place, capsys)[0] == 0
    other_loss(monkeypatch)
    code, lines, faults = verify(place, capsys)
    assert (code, faults) == (0, [])
    assert "give other weights, which proves nothing here (cpu Another, now " in lines[0]


def test_a_record_that_does_not_say_is_not_compared(place, capsys, monkeypatch):
    record = read_json(record_of(place), "it")
    del record["sessions"][0]["first_steps"]
    write_sealed(record_of(place), record)
    assert verify(place, capsys)[1][0] == "big/seed0: not replayed: its record does not say what its first steps gave"


def test_a_run_that_was_stopped_before_its_first_steps_were_done_is_compared_too(workplace, stop_after, monkeypatch):
    from distillery.cluster.signals import Stopped
    from distillery.experiment import load_experiment

    stop_after(2)
    with pytest.raises(Stopped):
        workplace.make("big", checkpoint_seconds=0)
    monkeypatch.undo()
    workplace.make("big")
    sessions = read_json(record_of(workplace), "it")["sessions"]
    assert ["first_steps" in session for session in sessions] == [False, True]
    line = replay.replay_run(load_experiment(workplace.experiment), "big", 0, workplace.results, 0)
    assert line == "big/seed0: its first 4 steps taken again: the same weights"
