"""A rehearsal makes a whole experiment for real, in a folder of its own."""

import pytest

pytestmark = pytest.mark.slow

TABLE = "results/tables/tiny.md"
REHEARSAL = ("--config", "rehearsal=true")


def real_files(checkout):
    folder = checkout.folder / "results"
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "rehearsal" not in path.relative_to(folder).parts
    }


def test_an_experiment_is_rehearsed_beside_its_real_results(made):
    made.replace("config/tiny.yaml", "    small: {model: cifar_resnet8, recipe: tiny}\n", "")
    made.replace("config/tiny.yaml", "[big, small, taught]", "[big, taught]")
    assert made.run("snakemake", TABLE, "--cores", "1").returncode == 0
    before = real_files(made)
    result = made.run("snakemake", TABLE, "--cores", "2", *REHEARSAL)
    assert result.returncode == 0, result.stdout
    assert "Rehearsed: tables, logs and results are in results/rehearsal/" in result.stdout
    real, rehearsed = (made.read(f"{folder}{TABLE}").splitlines() for folder in ("", "results/rehearsal/"))
    rows, real_rows = ([line.split("|")[1].strip() for line in text if "|" in line] for text in (rehearsed, real))
    assert {"big", "taught"} <= set(rows)
    assert rows == real_rows
    assert real != rehearsed
    assert real_files(made) == before
    assert made.planned(TABLE) == set()
    assert made.planned(TABLE, *REHEARSAL) == set()


def test_a_rehearsal_is_planned_without_the_real_data(fresh):
    fresh.replace("config/digits.yaml", "seeds: [0, 1, 2, 3, 4]", "seeds: [0, 1, 2, 3, 4, 5]")
    planned = fresh.planned("results/tables/digits.md", *REHEARSAL)
    assert "train digits/resnet8-kd, seed 0" in planned
    assert "train digits/resnet8-kd, seed 1" not in planned
    assert not (fresh.folder / "data").exists()


def test_a_mistyped_switch_gets_one_line(pristine):
    result = pristine.run("snakemake", "--dry-run", "--config", "rehearsal=yes")
    assert result.returncode != 0
    assert "distillery: --config rehearsal=yes: expected true or false" in result.stdout
    assert "Traceback" not in result.stdout
