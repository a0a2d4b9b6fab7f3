"""Provenance names the code and the machine's parts, and no person."""

import getpass
import json
import os
import platform
import subprocess
from pathlib import Path

import pytest

from distillery.provenance import git_state, provenance


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "code.py").write_text("1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "package")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_it_is_plain_json_and_says_what_the_run_was_made_with():
    import torch

    record = json.loads(json.dumps(provenance(), allow_nan=False))
    assert torch.__version__.startswith(record["packages"]["torch"])
    assert record["packages"]["distillery"]
    assert record["python"].endswith(platform.python_version())
    assert record["threads"] == torch.get_num_threads()
    assert record["cpu"]
    assert len(record["gpus"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def test_it_names_no_host_user_or_folder():
    text = json.dumps(provenance())
    words = {word for value in json.loads(text).values() for word in str(value).replace("'", " ").split()}
    assert platform.node() not in words
    assert getpass.getuser() not in words
    assert str(Path.home()) not in text
    assert os.sep + "src" not in text


def test_a_clean_repository_gives_its_commit(repository):
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert git_state(repository / "package") == {"commit": commit, "dirty": False}


def test_a_changed_tracked_file_is_dirty_and_a_stray_one_is_not(repository):
    (repository / "notes.txt").write_text("stray")
    assert git_state(repository / "package")["dirty"] is False
    (repository / "package" / "code.py").write_text("2\n")
    assert git_state(repository / "package")["dirty"] is True
    git(repository, "add", "package")
    assert git_state(repository / "package")["dirty"] is True


def test_what_merely_lies_in_a_repository_is_not_of_it(repository, tmp_path):
    installed = repository / ".venv" / "site-packages" / "distillery"
    installed.mkdir(parents=True)
    (installed / "code.py").write_text("1\n")
    assert git_state(installed) is None


def test_there_may_be_no_repository_no_commit_and_no_git(tmp_path, monkeypatch):
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", "code.py")
    assert git_state(tmp_path) is None
    git(tmp_path, "commit", "-q", "-m", "first")
    assert git_state(tmp_path) is not None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert git_state(tmp_path) is None


def test_variables_of_a_git_hook_do_not_point_it_elsewhere(repository, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GIT_DIR", str(tmp_path_factory.mktemp("other") / ".git"))
    assert git_state(repository / "package") is not None
