"""Histories are read whole, or the command that makes them is named."""

import json
import math
import re

import numpy as np
import pytest

from distillery.errors import UserError
from distillery.paths import run_folder
from distillery.reporting.history import read_histories, read_history

ROWS = [
    {"epoch": 1, "lr": 0.1, "train_loss": 2.0, "val_top1": 50.0},
    {"epoch": 2, "lr": 0.01, "train_loss": 1.0, "val_top1": 60.5},
]


@pytest.fixture
def history(tmp_path):
    def write(text):
        path = tmp_path / "history.csv"
        path.write_bytes(text.encode("latin-1"))
        return path

    return write


def test_columns_come_as_numbers(desk):
    for seed in (0, 1, 2):
        desk.write_history("small", seed, [{**row, "val_top1": row["val_top1"] + seed} for row in ROWS])
    histories = read_histories(desk.experiment, "small", desk.results)
    assert [list(one["val_top1"]) for one in histories] == [[50.0, 60.5], [51.0, 61.5], [52.0, 62.5]]
    assert list(histories[0]["epoch"]) == [1, 2]


def test_what_has_diverged_or_is_left_empty_is_nan(history):
    columns = read_history(history("epoch,train_loss,val_top1\n1,nan,\n2,inf,10.0\n"), "x")
    assert math.isnan(columns["train_loss"][0])
    assert math.isnan(columns["train_loss"][1])
    assert np.array_equal(columns["val_top1"], [math.nan, 10.0], equal_nan=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "row 1: no column 'epoch'"),
        ("epoch,train_loss\n1,2\n", "row 1: no column 'val_top1'"),
        ("epoch,train_loss,val_top1\n", "has no epochs yet; finish it with"),
        ("epoch,train_loss,val_top1\n1,2.0,x\n", "row 2: 'x' is not valid"),
        ("epoch,train_loss,val_top1\n1,2.0,50\n2,1.0\n", "row 3: '2,1.0' is not valid"),
        ("\xff", "cannot be read: it is not UTF-8 text"),
    ],
)
def test_a_damaged_history_is_named(history, text, expected):
    path = history(text)
    with pytest.raises(UserError) as caught:
        read_history(path, "distillery train me")
    line = str(caught.value)
    assert line.startswith(f"{path}: {expected}")
    assert line.endswith("with: distillery train me")


def test_a_missing_history_is_named_with_the_command_that_makes_it(desk):
    desk.write_history("small", 0, ROWS)
    path = run_folder(desk.results, "toy", "small", 1) / "history.csv"
    command = f"distillery train {desk.experiment.path} small --seed 1 --results {desk.results}"
    line = f"{path}: missing; first make it with: {command}"
    with pytest.raises(UserError, match=f"^{re.escape(line)}$"):
        read_histories(desk.experiment, "small", desk.results)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"digest": "f" * 16}, "history.csv: of another configuration of the run (ffffffffffffffff, now "),
        ({"history_sha256": "f" * 64}, "history.csv: not the history that its run.json is about; make it again with: "),
    ],
)
def test_the_history_of_another_run_is_no_curve_of_this_one(desk, record, line):
    for seed in (0, 1, 2):
        desk.write_history("small", seed, ROWS)
    path = run_folder(desk.results, "toy", "small", 0)
    (path / "run.json").write_text(json.dumps({"digest": desk.experiment.spec("small", 0).digest}))
    read_histories(desk.experiment, "small", desk.results)
    (path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=re.escape(line)):
        read_histories(desk.experiment, "small", desk.results)


def test_seeds_of_different_length_are_refused(desk):
    for seed in (0, 1, 2):
        desk.write_history("small", seed, ROWS[: 1 if seed == 2 else 2])
    path = run_folder(desk.results, "toy", "small", 2) / "history.csv"
    with pytest.raises(UserError, match=re.escape(f"{path}: ends at epoch 1, but seed 0 at 2; make it again with")):
        read_histories(desk.experiment, "small", desk.results)


def test_of_a_run_that_is_half_trained_the_seeds_that_have_come_furthest_are_read(desk):
    def epochs_and_seeds():
        histories = read_histories(desk.experiment, "small", desk.results, partial=True)
        return [len(one["epoch"]) for one in histories]

    assert epochs_and_seeds() == []
    desk.write_history("small", 0, ROWS[:1])
    desk.write_history("small", 1, ROWS)
    path = run_folder(desk.results, "toy", "small", 2) / "history.csv"
    path.parent.mkdir(parents=True)
    path.write_text("epoch,lr,train_loss,val_top1\n")
    assert epochs_and_seeds() == [2]
    desk.write_history("small", 2, ROWS)
    assert epochs_and_seeds() == [2, 2]
    path.write_text("")
    with pytest.raises(UserError, match="no column 'epoch'"):
        epochs_and_seeds()
