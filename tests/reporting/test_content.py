"""What a table says: the best of each column, published numbers in the column's terms, verdicts."""

import re

import pytest

from distillery.errors import UserError
from distillery.reporting.content import gather, read_ledger
from distillery.reporting.measurements import read_measurements


@pytest.fixture
def content(desk):
    """The experiment's table of methods, after the test has written results."""

    def of(columns=None, rows=None, runs=None):
        experiment = desk.experiment
        table = experiment.config.tables["methods"]
        table = table.model_copy(update={"columns": columns or table.columns, "rows": rows or table.rows})
        runs = read_measurements(experiment, desk.results) if runs is None else runs
        return gather(experiment, "methods", table, runs, read_ledger(experiment, desk.ledger))

    return of


def best(content, metric):
    return {run for (run, name), entry in content.entries.items() if name == metric and entry.best}


def test_the_best_is_the_highest_or_the_lowest_as_the_metric_has_it(desk, content):
    desk.write_results()
    desk.write_metrics("small", 0, top1=80.0, nll=0.1, ece=9.0)
    columns = ("top1", "error1", "nll", "ece")
    found = content(columns)
    assert [best(found, metric) for metric in columns] == [{"small-kd"}, {"small-kd"}, {"small"}, {"small-kd"}]


def test_a_teacher_in_the_table_does_not_compete(desk, content):
    desk.write_results()
    assert best(content(), "top1") == {"small-kd"}
    # Without its student it is a row like others.
    assert best(content(rows=("big", "small")), "top1") == {"big"}


def test_what_prints_alike_is_equally_good(desk, content):
    desk.write_results()
    for seed in (0, 1, 2):
        desk.write_metrics("small", seed, top1=92.0 + seed + 0.0001)
    assert best(content(), "top1") == {"small", "small-kd"}
    desk.write_metrics("small", 0, top1=92.1)
    assert best(content(), "top1") == {"small"}


def test_a_value_without_competitor_is_not_called_best(desk, content):
    desk.write_results()
    assert best(content(), "agreement") == set()


def test_what_the_architecture_decides_is_not_called_best(desk, content):
    desk.write_results()
    columns = ("params", "macs", "size")
    found = content(columns, rows=("big", "small"))
    assert [best(found, metric) for metric in columns] == [set(), set(), set()]


def test_a_published_accuracy_is_shown_as_the_error_that_a_column_asks_for(desk, content):
    desk.write_results()
    desk.write_ledger("small,top1,91.50,,,last,here")
    entry = content(("error1", "top1")).entries["small", "error1"]
    assert str(entry.published.value) == "8.50"
    assert (entry.verdict.finding, entry.verdict.difference) == ("within noise", 0.5)
    # Both ask for the same published number: it is shown once.
    assert content(("error1", "top1")).judged == ["error1"]
    assert content(("top1", "nll", "error1")).judged == ["top1"]
    assert content(("nll",)).judged == []


GAIN = ("small,top1,91.50,0.2,3,last,here", "small,gain_over_published,0.6,,,,here")


def test_a_gain_over_published_is_our_top1_less_what_was_best_before(desk, content):
    desk.write_results()
    for seed, top1 in enumerate((91.0, 91.04, 91.08)):
        desk.write_metrics("small", seed, top1=top1)
    desk.write_ledger(*GAIN, "small-kd,top1,92,,,,here")
    found = content(("top1", "gain_over_published"))
    entry = found.entries["small", "gain_over_published"]
    assert entry.summary.mean == 0.14  # 91.04 - (91.50 - 0.6)
    assert entry.summary.n == 3
    assert entry.summary.std == found.entries["small", "top1"].summary.std
    assert (str(entry.published.value), str(entry.published.std), entry.published.n) == ("0.6", "0.2", 3)
    assert entry.verdict == found.entries["small", "top1"].verdict
    assert entry.verdict.difference == pytest.approx(-0.46)
    assert found.judged == ["top1", "gain_over_published"]


def test_a_gain_over_an_error_is_that_over_the_accuracy(desk, content):
    desk.write_results()
    desk.write_ledger("small,error1,8.50,,,,here", "small,gain_over_published,-0.10,,,,here")
    entry = content(("gain_over_published",)).entries["small", "gain_over_published"]
    assert entry.published.best_before + entry.published.value == entry.published.beside.value
    assert str(entry.published.best_before) == "91.60"


def test_the_highest_gain_is_the_best_even_where_the_highest_top1_is_anothers(desk, content):
    desk.write_results()
    for seed in (0, 1, 2):
        desk.write_metrics("small", seed, top1=91.0)
        desk.write_metrics("small-kd", seed, top1=95.0)
    desk.write_ledger(*GAIN, "small-kd,top1,99,,,,here", "small-kd,gain_over_published,1.0,,,,here")
    found = content(("top1", "gain_over_published"))
    assert (best(found, "top1"), best(found, "gain_over_published")) == ({"small-kd"}, {"small"})


@pytest.mark.parametrize("measured", [True, False])
def test_without_published_numbers_there_is_no_gain_to_miss(desk, content, measured):
    desk.write_results()
    desk.write_ledger(*GAIN)
    found = content(("gain_over_published",), runs=None if measured else {})
    assert found.entries["big", "gain_over_published"].summary is None
    assert not found.entries["big", "gain_over_published"].gap
    assert found.entries["small", "gain_over_published"].gap is not measured
    assert (found.entries["small", "gain_over_published"].verdict.finding == "not run") is not measured


def test_a_published_run_without_results_is_not_run(desk, content):
    desk.write_results()
    desk.write_ledger("small,top1,91.50,,,last,here")
    runs = read_measurements(desk.experiment, desk.results)
    del runs["small"]
    found = content(runs=runs)
    assert found.entries["small", "top1"].verdict.finding == "not run"
    assert best(found, "top1") == set()


def test_a_published_run_that_the_experiment_does_not_have_is_a_mistake(desk):
    desk.write_ledger("small,top1,91.5,,,,here", "smal-kd,top1,92,,,,here")
    line = f"{desk.ledger}: row 3, run: {desk.experiment.path} has no run 'smal-kd'; did you mean 'small-kd'"
    with pytest.raises(UserError, match=re.escape(line)):
        read_ledger(desk.experiment, desk.ledger)
