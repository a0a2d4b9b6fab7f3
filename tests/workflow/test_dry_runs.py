"""What a newcomer may type in a clean clone, without a home folder's settings."""

from pathlib import Path

import pytest

from distillery.experiment import load_experiment

pytestmark = pytest.mark.slow

EXPERIMENT = load_experiment(Path(__file__).parents[2] / "config" / "digits.yaml")
TRAININGS = {
    f"train digits/{run}, seed {seed}{', a teacher' if run in EXPERIMENT.teachers else ''}"
    for run, seed in EXPERIMENT.members()
}


def trainings(planned: set[str]) -> set[str]:
    return {message for message in planned if message.startswith("train ")}


def test_bare_snakemake_makes_the_tables_and_figures_of_digits(pristine):
    planned = pristine.planned()
    assert {"assemble the tables of digits", "draw the figures of digits"} <= planned
    assert trainings(planned) == TRAININGS


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")])
def test_one_table(pristine, profile):
    planned = pristine.planned("results/tables/digits.md", *profile)
    assert "draw the figures of digits" not in planned
    assert trainings(planned) == TRAININGS


def test_one_student_needs_its_teacher_and_no_other_run(pristine):
    assert pristine.planned("results/digits/resnet8-kd/seed0/metrics.json") == {
        "prepare data set digits",
        "train digits/resnet20, seed 0, a teacher",
        "train digits/resnet8-kd, seed 0",
        "evaluate digits/resnet8-kd, seed 0",
    }


def test_initial_weights_are_made_first_whatever_experiment_they_are_of(fresh):
    fresh.write(
        "config/tuned.yaml",
        "tuned:\n  dataset: digits\n  runs:\n"
        "    base: {model: cifar_resnet8, recipe: digits}\n"
        "    tuned: {model: cifar_resnet8, recipe: digits, weights: 'run:base', teacher: taken, objective: {kd: {}}}\n"
        "    taken: {model: cifar_resnet20, weights: 'run:digits/resnet20'}\n",
    )
    assert fresh.planned("results/tuned/tuned/seed0/metrics.json") == {
        "prepare data set digits",
        "train digits/resnet20, seed 0, a teacher",
        "import tuned/taken",
        "train tuned/base, seed 0",
        "train tuned/tuned, seed 0",
        "evaluate tuned/tuned, seed 0",
    }


def test_dvc_prepares_a_data_set_in_a_fresh_clone(fresh):
    result = fresh.run("dvc", "repro", "dataset@digits")
    assert result.returncode == 0, result.stdout
    assert "prepare data set digits" in result.stdout
    assert (fresh.folder / "results" / "datasets" / "digits" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["results/digits/resnet8-kdd/seed0/metrics.json"],
            "distillery: config/digits.yaml: digits.runs: no run 'resnet8-kdd'; did you mean 'resnet8-kd'",
        ),
        (
            ["results/digits/resnet8-kd/seed7/metrics.json"],
            "distillery: config/digits.yaml: digits.runs.resnet8-kd: no seed 7; valid: 0, 1, 2, 3, 4",
        ),
        (
            ["--config", "experiments=digit"],
            "distillery: --config experiments=digit: no experiment config/digit.yaml; did you mean 'digits'",
        ),
        (
            ["--config", "rehersal=true"],
            "distillery: --config rehersal: unknown key 'rehersal'; did you mean 'rehearsal'",
        ),
        (["--config", "partial=maybe"], "distillery: --config partial=maybe: expected true or false"),
        (
            ["results/tables/digits/speeds.md"],
            "distillery: config/digits.yaml: digits.tables: no table 'speeds'; did you mean 'speed'",
        ),
    ],
)
def test_mistyped_target_gets_one_line(pristine, arguments, line):
    result = pristine.run("snakemake", *arguments, "--dry-run")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.stdout


def test_mistake_in_an_experiment_gets_one_line(fresh):
    fresh.replace("config/digits.yaml", "teacher: resnet20", "teacher: resnet21")
    result = fresh.run("snakemake", "--dry-run")
    assert result.returncode == 1
    line = "distillery: config/digits.yaml: digits.runs.resnet8-kd.teacher: no run 'resnet21'"
    assert result.stdout.splitlines()[-1].startswith(line)
    assert "Traceback" not in result.stdout


def test_missing_images_get_one_line(fresh):
    fresh.append("config/datasets.yaml", "birds: {path: data/birds}\n")
    result = fresh.run("snakemake", "--cores", "1", "results/datasets/birds/manifest.json")
    assert result.returncode == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("distillery: ")]
    assert "data/birds" in line
    assert "train/<class>" in line
    assert "Traceback" not in result.stdout
