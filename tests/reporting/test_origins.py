"""A table says when its runs come from several commits or versions, and else nothing of them."""

import json

import pytest
from tests.reporting.conftest import origin

from distillery.errors import UserError
from distillery.paths import run_folder, table_folder
from distillery.reporting.tables import tabulate_experiment


def text_of(desk, kind="md", **options):
    tabulate_experiment(desk.experiment, desk.results, desk.ledger, **options)
    return (table_folder(desk.results) / f"toy.{kind}").read_text()


def test_nothing_is_said_of_one_clean_commit(desk):
    desk.write_results()
    assert "made by" not in text_of(desk)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sessions", "sentence"),
    [
        ([origin("f" * 40)], "commit 1a2b3c4 and commit fffffff."),
        ([origin(), origin("f" * 40)], "commit 1a2b3c4 and commit fffffff."),
        ([origin("e" * 40), origin("f" * 40)], "commit 1a2b3c4, commit eeeeeee and commit fffffff."),
        ([origin(torch="2.10.0")], "torch 2.10.0 and torch 2.9.0."),
        ([origin("f" * 40, torch="2.10.0")], "commit 1a2b3c4 and commit fffffff; torch 2.10.0 and torch 2.9.0."),
        ([origin(dirty=True)], "commit 1a2b3c4 and commit 1a2b3c4 with uncommitted changes."),
        ([origin() | {"git": None}], "an installed package and commit 1a2b3c4."),
    ],
)
def test_one_sentence_names_what_differs(desk, sessions, sentence):
    desk.write_results()
    desk.write_record("small", 1, *sessions)
    assert f"\n\nThe runs were made by {sentence}\n" in text_of(desk)
    assert f"Teaching a small network. The runs were made by {sentence}" in text_of(desk, "tex")
    assert "made by" not in text_of(desk, "csv")


def test_uncommitted_changes_are_said_even_where_all_runs_have_them(desk):
    desk.write_results()
    for run in desk.experiment.config.runs:
        for seed in desk.experiment.seeds(run):
            desk.write_record(run, seed, origin(dirty=True))
    assert "The runs were made by commit 1a2b3c4 with uncommitted changes." in text_of(desk)


def test_an_imported_run_has_one_provenance(desk):
    desk.write_results()
    path = run_folder(desk.results, "toy", "big", 0) / "run.json"
    path.write_text(json.dumps({"provenance": origin("f" * 40)}))
    assert "commit 1a2b3c4 and commit fffffff" in text_of(desk)


def test_a_table_alone_says_it_of_its_own_runs(desk):
    desk.write_results()
    desk.write_record("small-kd", 0, origin("f" * 40))
    text_of(desk)
    folder = table_folder(desk.results) / "toy"
    assert "made by" in (folder / "methods.md").read_text()
    assert "made by" not in (folder / "speed.md").read_text()


def test_a_missing_record_is_named_unless_the_experiment_is_partial(desk):
    desk.write_results()
    path = run_folder(desk.results, "toy", "small", 2) / "run.json"
    path.unlink()
    with pytest.raises(UserError, match=r"small/seed2/run\.json: missing; first make it with: distillery train "):
        text_of(desk)
    assert "made by" not in text_of(desk, partial=True)
