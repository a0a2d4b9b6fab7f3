"""An experiment as far as there are results, and one of its tables alone."""

import shutil

import pytest

pytestmark = pytest.mark.slow

TARGETS = ("results/tables/tiny.md", "results/figures/tiny")
PARTIAL = (*TARGETS, "--config", "partial=true")


def test_a_partial_experiment_marks_its_gaps_and_makes_nothing(made):
    shutil.rmtree(made.folder / "results/tiny/taught")
    result = made.run("snakemake", *PARTIAL, "--cores", "1")
    assert result.returncode == 0, result.stdout
    text = made.read("results/tables/tiny.md")
    assert "A partial experiment: 2 of 3 runs are complete." in text
    assert "| taught | big" in " ".join(text.split())
    assert not (made.folder / "results/tiny/taught").exists()
    assert made.planned(*PARTIAL) == set()
    # More results make it again, and so does asking for the whole experiment.
    shutil.copytree(made.folder / "results/tiny/small", made.folder / "results/tiny/taught")
    assert "assemble the tables of tiny" in made.planned(*PARTIAL)
    shutil.rmtree(made.folder / "results/tiny/taught")
    assert made.planned(*TARGETS) >= {"train tiny/taught, seed 0", "assemble the tables of tiny"}


def test_a_table_alone_needs_its_own_runs_and_is_that_of_its_experiment(made):
    made.replace("config/tiny.yaml", "  tables:\n", "  tables:\n    alone: {rows: [small], columns: [top1]}\n")
    shutil.rmtree(made.folder / "results/tiny/taught")
    target = "results/tables/tiny/alone.md"
    assert made.planned(target) == {"assemble the table alone of tiny"}
    result = made.run("snakemake", target, "--cores", "1")
    assert result.returncode == 0, result.stdout
    alone = {name: made.read(f"results/tables/tiny/alone.{name}") for name in ("md", "tex", "csv", "html")}
    # The experiment would train; made by hand from what there is, it writes the same.
    assert made.run("distillery", "tabulate", "config/tiny.yaml", "--partial").returncode == 0
    assert {name: made.read(f"results/tables/tiny/alone.{name}") for name in alone} == alone
    assert made.planned(target) == set()
