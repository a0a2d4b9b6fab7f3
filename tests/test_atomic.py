"""Files appear whole or not at all."""

import json
import os
import signal
import subprocess
import sys

import pytest

from distillery.atomic import replace_file, write_json, write_text
from distillery.errors import UserError


def test_text_is_written_as_given_and_missing_folders_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "text.txt"
    write_text(path, "±\nend\n")
    assert path.read_bytes() == "±\nend\n".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]


def test_an_error_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"old")

    def write_half():
        with replace_file(path) as temporary:
            temporary.write_bytes(b"ne")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.bin"]


def test_the_old_file_stays_until_the_block_ends(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with replace_file(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path; from distillery.atomic import replace_file\n"
        "with replace_file(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_two_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "x"
    with replace_file(path) as first, replace_file(path) as second:
        first.write_text("first, long")
        second.write_text("second")
    assert path.read_text() == "first, long"


def test_files_get_the_permissions_the_user_asked_for(tmp_path):
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_json_keeps_its_order_and_refuses_nan(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": None})
    assert path.read_text() == '{\n  "b": 1,\n  "a": null\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"b": 1, "a": None}


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x: cannot be written: \w+"):
        write_text(tmp_path / "file" / "x", "")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "text")
