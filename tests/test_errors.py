"""What errors and output may hold."""

from types import SimpleNamespace

import pytest

from distillery.cli import main
from distillery.errors import printable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("z\x1b]0;title\x07", "z\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("right to left \u202egnp", "right to left \\u202egnp"),
        ("café, 猫\tand\nmore", "café, 猫\tand\nmore"),
    ],
)
def test_what_moves_a_terminals_cursor_is_spelt_out(name, shown):
    assert printable(name) == shown


NASTY = "a\x1b[2Jb"
SPELT = "a\\x1b[2Jb"


@pytest.mark.parametrize(
    ("arguments", "said_by"),
    [
        (["check", "config/tiny.yaml", "--workers", "0"], "distillery.training.check.notes"),
        (["check", "config/tiny.yaml", "--workers", "0"], "distillery.training.forecast.Forecast.warnings"),
        (["data", "tiny"], "distillery.data.show.show_dataset"),
        (["evaluate", "--dataset", "tiny", "m=w"], "distillery.evaluation.checkpoints.table_of"),
        (["compare", "config/tiny.yaml", "big", "small"], "distillery.evaluation.compare.compare_runs"),
        (["plan", "config/tiny.yaml"], "distillery.training.costs.describe_costs"),
        (["plan"], "distillery.training.costs.summary"),
        (["why", "tiny/big"], "distillery.experiment.why.describe"),
        (["logs", "tiny/big"], "distillery.reporting.runs.describe_logs"),
        (["show", "tiny/big"], "distillery.reporting.runs.describe_run"),
        (["export", "tiny/big", "--to", "timm"], "distillery.export.export.export_runs"),
        (["adopt", "args.yaml"], "distillery.adopt.adopt.adopt_file"),
    ],
)
def test_commands_spell_it_out_on_the_screen(workplace, monkeypatch, capsys, arguments, said_by):
    one = {"table_of", "describe_costs", "summary", "describe_run"}
    said = NASTY if said_by.rpartition(".")[2] in one else [NASTY]
    if said_by.endswith("compare_runs"):
        said = SimpleNamespace(as_text=lambda: NASTY)
    monkeypatch.setattr(said_by, lambda *_, **__: said)
    monkeypatch.setattr("distillery.evaluation.checkpoints.evaluate_checkpoints", lambda *_: [])
    monkeypatch.setattr("distillery.reporting.runs.read_logs", lambda *_: [NASTY])
    monkeypatch.chdir(workplace.folder)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert SPELT in captured.out + captured.err
    assert "\x1b" not in captured.out + captured.err
    assert ended.value.code == 0


def test_an_error_is_spelt_out_too(workplace, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["check", f"{NASTY}.yaml"])
    assert ended.value.code == 2
    assert "\x1b" not in (said := capsys.readouterr().err)
    assert SPELT in said
