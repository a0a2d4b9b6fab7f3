"""What errors and output may hold."""

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


def test_commands_spell_it_out_on_the_screen(monkeypatch, capsys):
    monkeypatch.setattr("distillery.data.show.show_dataset", lambda *_: ["a\x1b[2Jb"])
    with pytest.raises(SystemExit):
        main(["data", "tiny"])
    assert capsys.readouterr().out == "a\\x1b[2Jb\n"
