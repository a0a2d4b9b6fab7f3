"""Checkpoints that were damaged, cannot be read, or belong to another network."""

import errno
from pathlib import Path

import pytest
import torch

from distillery.cluster.signals import Stopped
from distillery.errors import UserError
from distillery.training.checkpoint import CheckpointFolder


def state(step, best=0):
    return {"learner": {"weight": torch.full((64,), float(step))}, "train_state": {"step": step, "best_epoch": best}}


@pytest.fixture
def folder(tmp_path):
    """Two generations, of steps 1 and 2."""
    checkpoints = CheckpointFolder(tmp_path / "seed0" / "digest-data")
    for step in (1, 2):
        checkpoints.save(state(step))
    return CheckpointFolder(checkpoints.folder)


def loaded_step(folder):
    return folder.load()[0]["train_state"]["step"]


def test_every_flipped_bit_is_harmless_or_found(folder, capsys):
    whole = folder.path.read_bytes()
    for position in range(0, len(whole), 7):
        folder.path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        found, path = folder.load()
        step = 2 if path == folder.path else 1
        assert found["train_state"]["step"] == step
        assert torch.equal(found["learner"]["weight"], torch.full((64,), float(step)))
    assert "damaged (its checksum is another); going on from the checkpoint before it" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 10, 1000])
def test_a_torn_checkpoint_falls_back_to_the_one_before_it_and_never_replaces_it(folder, kept, capsys):
    folder.path.write_bytes(folder.path.read_bytes()[:kept])
    assert loaded_step(folder) == 1
    assert "checkpoint.pt: damaged" in capsys.readouterr().out
    folder.save(state(3))
    folder.path.write_bytes(b"")
    assert loaded_step(folder) == 1


def test_both_generations_keep_their_best_weights(tmp_path):
    folder = CheckpointFolder(tmp_path / "seed0" / "digest-data")
    for best in (1, 2, 3):
        folder.folder.mkdir(parents=True, exist_ok=True)
        folder.best_path(best).touch()
        folder.save(state(best, best))
    assert sorted(path.name for path in folder.folder.glob("best-*")) == ["best-2.safetensors", "best-3.safetensors"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_now_is_an_error_and_left_as_it_is(workplace, stop_after, monkeypatch, number):
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make()
    monkeypatch.undo()
    (path,) = (workplace.results / "work").rglob("checkpoint.pt")
    before, original = path.read_bytes(), Path.open

    def fail(self, *arguments, **options):
        if self.name == path.name:
            raise OSError(number, "does not work now", str(path))
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be read: does not work now; nothing was changed"):
        workplace.make()
    monkeypatch.undo()
    assert path.read_bytes() == before


def _another_shape(state):
    state["learner"]["student.fc.weight"] = torch.zeros(4, 64)


def _another_optimizer(state):
    state["optimizer"]["param_groups"] = []


def _no_weights(state):
    del state["learner"]


@pytest.mark.parametrize("change", [_another_shape, _another_optimizer, _no_weights])
def test_tensors_that_do_not_fit_are_said_in_one_line(workplace, stop_after, monkeypatch, change):
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make()
    monkeypatch.undo()
    (path,) = (workplace.results / "work").rglob("checkpoint.pt")
    checkpoints = CheckpointFolder(path.parent)
    state, _ = checkpoints.load()
    change(state)
    checkpoints.save(state)
    with pytest.raises(
        UserError, match=r"checkpoint\.pt: does not fit this run .*; remove .* from the beginning"
    ) as said:
        workplace.make()
    assert "\n" not in str(said.value)


def test_a_complete_run_leaves_no_checkpoints_of_its_former_configurations(workplace, stop_after, monkeypatch):
    stop_after(5)
    with pytest.raises(Stopped):
        workplace.make()
    monkeypatch.undo()
    workplace.edit_recipe("clip_norm: 0.5")
    workplace.make()
    assert not list((workplace.results / "work").rglob("*.pt"))
