"""Folders appear whole or not at all."""

import subprocess
import sys

import pytest

from distillery.data.staging import staged_folder
from distillery.errors import UserError


def test_a_finished_folder_takes_the_place_of_an_older_one(tmp_path):
    output = tmp_path / "new" / "folder"
    for text in ("old", "new"):
        with staged_folder(output) as staging:
            assert staging.parent == output.parent
            (staging / text).write_text(text)
    assert [path.name for path in output.iterdir()] == ["new"]
    assert [path.name for path in output.parent.iterdir()] == ["folder"]


def fill_and_interrupt(output):
    with staged_folder(output) as staging:
        (staging / "half").touch()
        raise KeyboardInterrupt


def test_a_failure_leaves_the_older_folder_and_nothing_else(tmp_path):
    output = tmp_path / "folder"
    output.mkdir()
    (output / "old").touch()
    with pytest.raises(KeyboardInterrupt):
        fill_and_interrupt(output)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in output.iterdir()] == ["old"]


def test_what_a_killed_process_left_is_removed_but_not_what_a_living_one_fills(tmp_path):
    code = (
        "import os, sys, pathlib\n"
        "from distillery.data.staging import staged_folder\n"
        "with staged_folder(pathlib.Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    output = tmp_path / "folder"
    assert subprocess.run([sys.executable, "-c", code, str(output)]).returncode == -9
    (abandoned,) = tmp_path.iterdir()
    with staged_folder(output) as living:
        assert not abandoned.exists()
        with staged_folder(output) as other:
            assert living.exists()
            (other / "first").touch()
        (living / "second").touch()
    assert [path.name for path in output.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"file/folder: cannot be written: File exists"),
        staged_folder(tmp_path / "file" / "folder"),
    ):
        pass
