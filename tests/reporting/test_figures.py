"""Which figures an experiment has: curves, and those that its tables ask for."""

import pytest

from distillery.errors import UserError
from distillery.paths import figure_folder, run_folder
from distillery.reporting.figures import plot_experiment

DRAWN = """    grid:
      columns: [top1]
      grid: {across: [a, b], down: {teacher: [big, null], student: [small, small-kd]}}
      figure: heat_map
    speeds:
      rows: [big, small, small-kd]
      columns: [error1, throughput]
      figure: pareto
"""


@pytest.fixture
def drawn(desk):
    desk.write_experiment(desk.text + DRAWN)
    for run in desk.experiment.config.runs:
        for seed in desk.experiment.seeds(run):
            desk.write_history(run, seed, [{"epoch": 1, "train_loss": 1.0, "val_top1": 90.0}])
    desk.write_results()
    return desk


def names(desk, **options):
    files = plot_experiment(desk.experiment, desk.results, desk.ledger, **options)
    assert set(files) == set(figure_folder(desk.results, "toy").iterdir())
    return {path.stem for path in files}


@pytest.mark.slow
def test_tables_are_drawn_as_they_ask(drawn):
    assert names(drawn) == {"validation_top1", "training_loss", "grid_heat_map", "speeds_pareto"}


@pytest.mark.slow
def test_gains_are_drawn_where_there_is_a_baseline(drawn):
    text = drawn.experiment.path.read_text()
    drawn.write_experiment(text.replace("[error1, throughput]", "[error1, throughput, gain]\n      baseline: small"))
    assert names(drawn) >= {"speeds_pareto", "speeds_gains"}
    (run_folder(drawn.results, "toy", "small", 1) / "metrics.json").unlink()
    with pytest.raises(UserError, match="missing"):
        names(drawn)
    assert "speeds_gains" in names(drawn, partial=True)


@pytest.mark.slow
def test_only_what_is_drawn_has_to_be_measured(drawn):
    drawn.write_experiment(drawn.text.partition("    grid:")[0])
    (run_folder(drawn.results, "toy", "small", 1) / "metrics.json").unlink()
    assert names(drawn) == {"validation_top1", "training_loss"}


@pytest.mark.slow
def test_a_partial_experiment_draws_what_there_is(drawn):
    (run_folder(drawn.results, "toy", "small", 1) / "history.csv").unlink()
    (run_folder(drawn.results, "toy", "small", 1) / "metrics.json").unlink()
    with pytest.raises(UserError, match="missing"):
        plot_experiment(drawn.experiment, drawn.results, drawn.ledger)
    assert names(drawn, partial=True) == {"validation_top1", "training_loss", "grid_heat_map", "speeds_pareto"}


def test_a_partial_experiment_without_results_has_no_figures(desk):
    desk.write_experiment(desk.text + DRAWN)
    assert plot_experiment(desk.experiment, desk.results, desk.ledger, partial=True) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("figure: pareto", "figure: heat_map", "a heat map needs a `grid`"),
        ("figure: heat_map", "figure: pareto", "a Pareto front needs `rows`, and the columns top1 or error1"),
        ("[error1, throughput]", "[error1, latency]", "a Pareto front needs .* throughput"),
    ],
)
def test_a_table_that_cannot_be_drawn_so_is_refused(desk, old, new, reason):
    desk.write_experiment(desk.text + DRAWN.replace(old, new))
    with pytest.raises(UserError, match=reason):
        desk.experiment  # noqa: B018
