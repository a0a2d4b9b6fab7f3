"""Two runs side by side: scores paired by seed, images that one gets right, classes that differ."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from distillery.cli import main
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.reporting import comparison
from distillery.reporting.comparison import Side, common_seeds
from distillery.training.job import Job, Machine
from distillery.training.run import make_run


def rows(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def compared(sides, measured=None, labels=None, predicted=None, classes=()):
    """What the parts of a comparison say, as text."""
    return (
        comparison.Comparison(
            sides[0].name,
            sides[1].name,
            [0, 1, 2],
            comparison.compare_specs(*sides, 0),
            comparison.compare_metrics(measured, [0, 1, 2]) if measured else [],
            comparison.compare_images(labels, predicted or {}),
            comparison.compare_classes(classes, labels, predicted) if classes else [],
        )
        .as_text()
        .split("\n\n")
    )


@pytest.fixture
def sides(desk):
    desk.write_results()
    experiment = desk.experiment
    return Side(experiment, "small-kd"), Side(experiment, "small")


def test_metrics_that_both_have_are_compared_by_seed(desk, sides):
    measured = comparison.read_both(*sides, [0, 1, 2], desk.results)
    head, *found = rows(compared(sides, measured)[1])
    assert head == ["Metric", "small-kd", "small", "Difference (n = 3)"]
    assert [row[0] for row in found] == ["Top-1 (%)", "Top-5 (%)", "NLL", "ECE (%)"]
    assert found[0] == ["Top-1 (%)", "93.00", "91.00", "+2.00 (the same for all 3 seeds)"]
    assert found[1][3] == "0.00, p 1.00"
    desk.write_metrics("small", 0, top1=90.5)
    measured = comparison.read_both(*sides, [0, 1, 2], desk.results)
    (_, top1, *_) = rows(compared(sides, measured)[1])
    assert re.fullmatch(r"\+1\.83 \(1\.12 to 2\.55\), p 0\.00\d", top1[3])


def test_images_are_counted_by_who_gets_them_right(sides):
    labels = np.array([0, 0, 1, 1, 2, 2])
    pair = np.array([0, 0, 1, 0, 2, 1]), np.array([0, 1, 0, 0, 1, 2])
    head, row = rows(compared(sides, None, labels, {4: pair})[2])
    assert head == ["Seed", "Agreement (%)", "Both right", "Only small-kd right", "Only small right", "Neither"]
    assert row == ["4", "33.33", "1", "3", "1", "1"]


def test_classes_are_listed_by_how_much_they_differ(sides):
    labels = np.array([0, 0, 1, 1, 2, 2])
    always = np.array([0, 0, 1, 1, 2, 2])
    predicted = {0: (always, np.array([0, 0, 0, 0, 2, 1])), 1: (always, np.array([0, 0, 1, 0, 2, 2]))}
    found = rows(compared(sides, None, labels, predicted, ["ape", "bee", "cow", "none"])[3])
    assert found[1:] == [["bee", "2", "100.00", "25.00", "+75.00"], ["cow", "2", "100.00", "75.00", "+25.00"]]
    same = compared(sides, None, labels, {0: (always, always)}, ["ape", "bee", "cow"])[3]
    assert same == "Every class has the same top-1."


def test_specs_are_compared_key_by_key(sides):
    lines = compared(sides)[0].splitlines()
    assert lines[0] == "toy/small-kd against toy/small, by their specs:"
    assert any(line.startswith("  objective.kd: absent -> ") for line in lines)
    assert compared((sides[1], sides[1]))[0] == "toy/small against toy/small, whose specs are the same"


def test_runs_without_a_common_seed_are_refused(desk):
    desk.write_experiment(desk.text.replace("seeds: [0]}", "seeds: [7]}"))
    experiment = desk.experiment
    with pytest.raises(
        UserError, match=r"toy/small has seeds 0, 1, 2, but toy/big has 7; runs are compared seed by seed"
    ):
        common_seeds(Side(experiment, "small"), Side(experiment, "big"))
    with pytest.raises(UserError, match="no run 'smal'; did you mean 'small'"):
        common_seeds(Side(experiment, "small"), Side(experiment, "smal"))


@pytest.fixture(scope="module")
def place(prepared_tiny, tmp_path_factory):
    """A teacher, its student and a run of another experiment, trained and measured."""
    folder = tmp_path_factory.mktemp("compare") / "work"
    shutil.copytree(prepared_tiny, folder)
    text = (folder / "config" / "tiny.yaml").read_text()
    (folder / "config" / "other.yaml").write_text(text.replace("tiny:", "other:", 1))
    for name, runs in (("tiny", ("big", "taught")), ("other", ("big",))):
        experiment = load_experiment(folder / "config" / f"{name}.yaml")
        for run in runs:
            make_run(Job(experiment, run, 0, folder / "results", Machine(workers=0, threads=1)))
            for seed in experiment.seeds(run)[:1]:
                evaluate_run(experiment, run, seed, folder / "results")
    return folder


def compare(place, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *arguments, "--workers", "0", "--results", str(place / "results")])
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


@pytest.mark.slow
def test_the_command_compares_runs_of_two_experiments(place, capsys):
    config = str(place / "config" / "tiny.yaml")
    code, out, _ = compare(place, capsys, config, "big", "other/big")
    assert code == 0
    assert "tiny/big against other/big, whose specs are the same" in out
    assert ["0", "100.00"] in [row[:2] for row in rows(out)]
    assert "Every class has the same top-1." in out
    code, out, _ = compare(place, capsys, config, "big", "other/big", "--json")
    found = json.loads(out)
    assert (found["run"], found["specs"], found["classes"]) == ("tiny/big", [], [])
    assert found["metrics"][0]["difference"]["mean"] == 0
    assert found["images"][0]["agreement"] == 100


@pytest.mark.slow
def test_the_command_counts_what_evaluation_counts(place, capsys):
    experiment = load_experiment(place / "config" / "tiny.yaml")
    code, out, _ = compare(place, capsys, str(experiment.path), "taught", "big")
    assert code == 0
    assert "\n  teacher: none -> big\n" in out
    (seed,) = [row for row in rows(out) if row[0] == "0"]
    both, ours, theirs, neither = map(int, seed[2:])
    top1 = {
        run: evaluate_run(experiment, run, 0, place / "results")["top1"] * (both + ours + theirs + neither) / 100
        for run in ("taught", "big")
    }
    assert (both + ours, both + theirs) == (pytest.approx(top1["taught"]), pytest.approx(top1["big"]))
    assert float(seed[1]) == pytest.approx(
        evaluate_run(experiment, "taught", 0, place / "results")["agreement"], abs=0.01
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["big", "small"], r"small/seed0/metrics\.json: missing; first make it with: distillery evaluate"),
        (["taught", "othr/big"], r"no experiment .*othr\.yaml; did you mean 'other'"),
        (["taught", "other/bog"], r"other\.runs: no run 'bog'; did you mean 'big'"),
    ],
)
def test_mistakes_are_one_line(place, capsys, arguments, line):
    code, _, err = compare(place, capsys, str(Path(place) / "config" / "tiny.yaml"), *arguments)
    assert code == 2
    assert re.search(line, err)
    assert len(err.splitlines()) == 1
