"""The published systems: every printed number has its run and its table, every recipe is the source's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from distillery.experiment import load_experiments
from distillery.experiment.plan import Plan
from distillery.experiment.rehearsal import family
from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.experiment import head_cells
from distillery.experiment.schema.objective import TERMS
from distillery.models.registry import create_model, is_model
from distillery.reporting.content import gather, read_ledger
from distillery.reporting.published import load_published

ROOT = Path(__file__).parents[2]
EXPERIMENTS = load_experiments(ROOT / "config")
SYSTEMS = [name for name in EXPERIMENTS if not name.startswith("digits")]
# The tables as their sources print them: labels and numbers of each row, in reading order.
PRINTED = json.loads((ROOT / "tests" / "golden" / "published_tables.json").read_text(encoding="utf-8"))
SCHEDULES = np.load(ROOT / "tests" / "golden" / "schedules.npz", allow_pickle=False)


def ledger_of(experiment):
    return read_ledger(experiment, ROOT / "config" / "published" / f"{experiment.name}.csv")


def content_of(experiment, table):
    return gather(experiment, table, experiment.config.tables[table], {}, ledger_of(experiment))


def shown(content):
    """Labels and published numbers of each row that has such numbers, in reading order."""
    table = content.table
    if table.grid is None:
        rows = [(head_cells(label), (run,)) for run, label in table.rows.items()]
    else:
        rows = [(head_cells(heading), runs) for heading, runs in table.grid.down.items()]
    for labels, runs in rows:
        entries = [content.entries[run, metric] for run in runs if run for metric in table.columns]
        numbers = [entry.published.value for entry in entries if entry.published is not None]
        if numbers:
            yield [*labels, *numbers]


@pytest.mark.parametrize("printed", PRINTED, ids=lambda printed: f"{printed['page']}-{printed['table']}")
def test_each_published_table_is_laid_out_as_printed(printed):
    rows = list(shown(content_of(EXPERIMENTS[printed["page"]], printed["table"])))
    assert len(rows) == len(printed["rows"])
    for ours, theirs in zip(rows, printed["rows"], strict=True):
        words = [cell for cell in ours if isinstance(cell, str)]
        assert words == theirs[: len(words)]
        # The digits too: 76.10 is another statement than 76.1. Sizes are printed in another unit.
        numbers = [cell for cell in ours if not isinstance(cell, str)]
        exact = [str(number) if abs(number) < 10**5 else float(number) for number in numbers]
        assert exact == [float(cell) if "e6" in cell else cell for cell in theirs[len(words) :]]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "config" / "published").glob("*.csv")))
def test_every_published_number_is_shown_by_a_table(name):
    experiment = EXPERIMENTS[name]
    shown_numbers = {
        entry.published.row
        for table in experiment.config.tables
        for entry in content_of(experiment, table).entries.values()
        if entry.published is not None
    }
    printed = load_published(ROOT / "config" / "published" / f"{name}.csv")
    assert {number.row for number in printed} == shown_numbers


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_run_is_in_a_table_or_makes_one_of_a_table_possible(name):
    experiment = EXPERIMENTS[name]
    in_tables = [run for table in experiment.config.tables.values() for run in table.runs()]
    family = {
        run
        for other in EXPERIMENTS.values()
        for experiment_, run in other.family(in_tables if other is experiment else ())
        if experiment_ is experiment
    }
    assert set(experiment.config.runs) == family


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_number_of_the_best_epoch_is_compared_with_the_best_epoch(name):
    """A number's selection rule is its run's, so that no verdict has to be `not comparable`."""
    experiment = EXPERIMENTS[name]
    for (_, run, metric), number in ledger_of(experiment).items():
        if run in experiment.recipes and number.selection and COLUMNS[metric].share:
            assert experiment.recipes[run].selection == number.selection, run


def test_the_benchmark_has_every_term_and_its_tuning_every_pair_of_settings():
    benchmark, tuning = (EXPERIMENTS[name] for name in ("cifar10-laptop", "cifar10-laptop-tuning"))
    assert {term for line in benchmark.config.runs.values() for term in line.objective.terms()} == set(TERMS)
    recipes = [recipe for experiment in (benchmark, tuning) for recipe in experiment.recipes.values()]
    assert {(recipe.epochs, recipe.optimizer.lr, recipe.crops) for recipe in recipes} == {(5, 0.1, 5)}
    students = [tuning.config.runs[run].objective for run in tuning.recipes]
    assert len({(line.kd.temperature, line.kd.weight) for line in students}) == 12
    assert all(line.ce.weight == pytest.approx(1 - line.kd.weight) for line in students)


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_the_workflow_imports_the_runs_that_have_no_recipe_from_anywhere(name):
    pattern = re.compile(Plan(ROOT / "config").pattern("imported"))
    imported = {run for run in EXPERIMENTS[name].config.runs if pattern.match(f"{name}/{run}/")}
    assert imported == set(EXPERIMENTS[name].config.runs) - set(EXPERIMENTS[name].recipes)


def test_every_network_is_known():
    lines = [line for experiment in EXPERIMENTS.values() for line in experiment.config.runs.values()]
    assert {line.model for line in lines if not is_model(line.model)} == set()


@pytest.mark.slow
def test_every_family_of_networks_takes_its_arguments():
    import torch

    lines = [line for name in SYSTEMS for line in EXPERIMENTS[name].config.runs.values()]
    for line in {(family(line.model), *line.model_args.items()): line for line in lines}.values():
        with torch.device("meta"):  # shapes without numbers
            create_model(line.model, 10, **line.model_args)


@pytest.mark.parametrize(
    ("run", "schedule"),
    [
        ("imagenet/mobilenet_v1-mgd-amp", "mgd_warmup"),
        ("imagenet/resnet50-bake", "bake_imagenet"),
        ("imagenet/mobilenet_v2-bake", "bake_imagenet_b"),
        ("cifar100/resnet18-bake", "bake_small"),
        ("mit67/densenet121-bake-ce", "bake_small"),
        ("imagenet/vit_small-usi", "usi"),
        ("imagenet/resnet50-ls0.1", "ls_teacher_imagenet"),
        ("imagenet/resnet18-kd-a0.1-T64", "ls_student_imagenet"),
        ("cub200/resnet50-ls0", "ls_teacher_cub"),
        ("cub200/mobilenet_v2-kd-a0-T2", "ls_student_cub"),
    ],
)
def test_the_learning_rates_are_those_of_the_original_code(run, schedule):
    from distillery.training.optim import learning_rate, total_epochs

    experiment, name = run.split("/")
    recipe, expected = EXPERIMENTS[experiment].recipes[name], SCHEDULES[schedule]
    epochs = total_epochs(recipe)
    assert len(expected) == epochs
    steps = expected.size // epochs
    rates = [[learning_rate(recipe, epoch, step, steps) for step in range(steps)] for epoch in range(epochs)]
    np.testing.assert_allclose(rates, expected.reshape(epochs, steps), rtol=1e-12)


@pytest.mark.parametrize(
    ("run", "batch", "sgd", "precision", "selection"),
    [
        ("imagenet/resnet50-bake", 512, (0.4, 5e-5, True), "32-true", "last"),
        ("imagenet/resnet50-bake-ce", 256, (0.2, 5e-5, True), "32-true", "last"),
        ("imagenet/mobilenet_v2-bake", 512, (0.1, 4e-5, True), "32-true", "last"),
        ("imagenet/efficientnet_b0-bake-ce", 256, (0.4, 1e-5, True), "32-true", "last"),
        ("imagenet/resnet50-ls0.1", 2048, (0.1, 1e-4, False), "32-true", "best"),
        ("imagenet/efficientnet_b0-kd-a0-T3", 2048, (0.1, 1e-4, False), "16-mixed", "best"),
        ("imagenet/mobilenet_v1-ce", 256, (0.1, 1e-4, False), "32-true", "best"),
        ("imagenet/resnet50-mgd-amp", 256, (0.1, 1e-4, True), "32-true", "best"),
        ("imagenet/resnet50-overhaul", 256, (0.1, 1e-4, True), "32-true", "best"),
        ("cub200/resnet50-ls0.1", 256, (0.01, 1e-4, False), "16-mixed", "best"),
        ("cub200/resnet18-kd-a0-T1", 256, (0.01, 1e-3, False), "16-mixed", "best"),
        ("cub200/shufflenet_v2-mgd-rd", 64, (0.01, 1e-4, True), "32-true", "best"),
        ("cub200/resnet18-bake", 32, (0.1, 1e-4, False), "32-true", "best"),
        ("cifar100/densenet121-bake", 128, (0.1, 1e-4, False), "32-true", "best"),
        ("cifar100/wrn_16_2-overhaul", 128, (0.1, 5e-4, True), "32-true", "last"),
        ("cifar100/resnet8x4-kd", 64, (0.05, 5e-4, False), "32-true", "last"),
        ("cifar100/resnet8x4-reviewkd", 128, (0.1, 5e-4, True), "32-true", "best"),
        ("cifar100/shufflenet_v1-reviewkd", 128, (0.02, 5e-4, True), "32-true", "best"),
        ("cifar100/resnet20-mlkd", 64, (0.025, 5e-4, False), "32-true", "best"),
        ("cifar100/mobilenet_v2-mlkd", 64, (0.01, 5e-4, False), "32-true", "best"),
        ("imagenet-methods/resnet18-dkd", 512, (0.2, 1e-4, False), "32-true", "best"),
        ("imagenet-methods/mobilenet_v1-reviewkd", 256, (0.1, 1e-4, False), "32-true", "best"),
        ("imagenet-methods/resnet18-wsld", 256, (0.1, 1e-4, True), "32-true", "best"),
        ("cifar10/efficientnet_b0-kd-resnet152", 256, (0.1, 0.0, True), "32-true", "best"),
    ],
)
def test_the_recipes_are_those_of_the_sources(run, batch, sgd, precision, selection):
    experiment, name = run.split("/")
    recipe = EXPERIMENTS[experiment].recipes[name]
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
    assert (optimizer.lr, optimizer.weight_decay, optimizer.nesterov) == sgd
    assert (recipe.batch, recipe.precision, recipe.selection) == (batch, precision, selection)


def test_bake_draws_the_last_layer_of_all_but_resnest():
    recipes = {run: recipe for run, recipe in EXPERIMENTS["imagenet"].recipes.items() if "-bake" in run}
    assert len(recipes) == 18
    for run, recipe in recipes.items():
        assert recipe.classifier_std == (None if run.startswith("resnest") else 0.01), run
    assert not any(
        recipe.classifier_std
        for experiment in EXPERIMENTS.values()
        for run, recipe in experiment.recipes.items()
        if run not in recipes
    )


def test_usi_has_one_recipe_for_every_backbone():
    experiment = EXPERIMENTS["imagenet"]
    usi = {run: experiment.recipes[run] for run in experiment.recipes if run.endswith("-usi")}
    assert len(usi) == 18
    for run, recipe in usi.items():
        same = recipe.model_copy(update={"preprocess": usi["resnet50-usi"].preprocess})
        assert same == usi["resnet50-usi"]
        assert (recipe.preprocess.size, recipe.preprocess.resize) == (224, 235)
        line = experiment.config.runs[run]
        assert line.teacher == "tresnet_v2_l"
        assert (line.objective.kd.weight, line.objective.kd.temperature, line.objective.ce.weight) == (5, 1, 1)


@pytest.mark.parametrize(("name", "students"), [("imagenet", 3), ("cub200", 3)])
def test_the_grids_are_complete_and_pair_each_student_with_its_teacher(name, students):
    experiment = EXPERIMENTS[name]
    grids = {key: table.grid for key, table in experiment.config.tables.items() if key.startswith("lskd-")}
    assert len(grids) == students
    for grid in grids.values():
        (teachers, *rows) = grid.down.values()
        assert len(rows) == 4
        for row, temperature in zip(rows, (1, 2, 3, 64), strict=True):
            for run, teacher in zip(row, teachers, strict=True):
                line = experiment.config.runs[run]
                assert line.teacher == teacher
                assert line.objective.kd.temperature == temperature
                assert list(line.objective.terms()) == ["kd"]
