"""Grids: runs by two settings, the metrics of each in its cell."""

import re

import pytest
from pydantic import ValidationError

from distillery.experiment.schema.columns import Summary
from distillery.experiment.schema.experiment import Table
from distillery.reporting.content import Content, Entry
from distillery.reporting.sheets import lay_out

GRID = {
    "title": "Temperature",
    "columns": ["top1", "nll"],
    "grid": {"corner": "T / a", "across": ["0.0", "0.1"], "down": {"teacher": ["t", None], "1": ["x", "y"]}},
}


def test_a_grid_puts_the_runs_where_the_experiment_puts_them():
    table = Table.model_validate(GRID)
    values = {"t": 99.0, "x": 97.5, "y": 98.25}
    entries = {
        (run, metric): Entry(run, metric, Summary(mean=value if metric == "top1" else 0.5, std=None, n=1), run == "y")
        for run, value in values.items()
        for metric in table.columns
    }
    sheet = lay_out(Content("grid", table, entries, dict.fromkeys(values), {}))
    assert sheet.headings == ("T / a", "0.0", "0.1")
    assert [[cell.text for cell in row] for row in sheet.rows] == [
        ["teacher", "99.00 / 0.500", "–"],
        ["1", "97.50 / 0.500", "98.25 / 0.500"],
    ]
    assert [[cell.bold for cell in row] for row in sheet.rows] == [[False, False, False], [False, False, True]]
    assert sheet.title == "Temperature (Top-1 (%) / NLL)"


def test_a_heading_may_be_split_over_columns():
    split = GRID["grid"] | {"corner": " | T", "down": {"Teacher | -": ["t", None], "Student | 1": ["x", "y"]}}
    entries = {(run, metric): Entry(run, metric, None) for run in "txy" for metric in GRID["columns"]}
    sheet = lay_out(Content("grid", Table.model_validate(GRID | {"grid": split}), entries, dict.fromkeys("txy"), {}))
    assert sheet.headings == ("", "T", "0.0", "0.1")
    assert sheet.numeric == (False, False, True, True)
    assert [[cell.text for cell in row][:2] for row in sheet.rows] == [["Teacher", "-"], ["Student", "1"]]


def test_a_grid_knows_its_runs():
    assert Table.model_validate(GRID).runs() == ("t", "x", "y")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": ["t"]}, "either `rows` or a `grid`"),
        ({"grid": None}, "either `rows` or a `grid`"),
        ({"grid": GRID["grid"] | {"down": {"1": ["x"]}}}, "row '1' has 1 runs for 2 columns"),
        ({"grid": GRID["grid"] | {"down": {"a | 1": ["x", "y"]}}}, "'a | 1' has 2 cells divided by |, but the corner"),
    ],
)
def test_misshapen_grids_are_refused(change, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        Table.model_validate(GRID | change)
