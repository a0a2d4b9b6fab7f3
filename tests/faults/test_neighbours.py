"""What lies beside an experiment, or is called almost like it, does not touch it."""

import os
import re
import time

import pytest

from distillery.experiment.loading import experiment_names, usual_recipe
from distillery.experiment.plan import Plan
from distillery.paths import run_folder, work_folder

PAGE = "page: {dataset: few, runs: {one: {model: cifar_resnet8, recipe: short}}}\n"
RECIPE = "epochs: 1\nbatch: 2\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 10)
)
HIDDEN = [
    "._page.yaml",
    ".#page.yaml",
    ".page.yaml.swp",
    "page.yaml~",
    "#page.yaml#",
    "page.yaml.bak",
    "page.yaml.orig",
]
BROKEN = {
    "half.yaml": "half:\n  dataset: few\n  runs:\n    one: {model: cifar_res",
    "empty.yaml": "",
    "bytes.yaml": b"\x00\x05\x16\x07\xff",
    "bomb.yaml": f"bomb:\n  dataset: few\n{BOMB}",
    "runs.yaml": f"{BOMB}runs: {{runs: {{one: {{teacher: *a9, weights: *a9}}}}}}\n",
    "deep.yaml": f"deep: {'[' * 100_000}",
    "twice.yaml": PAGE.replace("page", "twice") * 2,
    "a name.yaml": "a name: {}\n",
    "a`id`.yaml": "a: {}\n",
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "config"
    (folder / "recipes").mkdir(parents=True)
    (folder / "datasets.yaml").write_text("few: {path: data}\n'b`d': 5\n")
    (folder / "recipes" / "short.yaml").write_text(RECIPE)
    (folder / "recipes" / "._short.yaml").write_bytes(b"\x00\x05")
    (folder / "page.yaml").write_text(PAGE)
    return folder


def assert_whole(config):
    began = time.monotonic()
    plan = Plan(config, chosen=("page",))
    assert re.match(f"(?:{plan.pattern('student')})/", "page/one/")
    assert plan.all_results()
    assert plan.datasets() == ["few"]
    assert usual_recipe(config, "few") == "short"
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_files_and_editors_copies_are_no_experiments(config, name, capsys):
    (config / name).write_bytes(b"\x00\x05\x16\x07 not YAML")
    assert experiment_names(config) == ["page"]
    assert_whole(config)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_experiment_stops_no_other(config, name, capsys):
    content = BROKEN[name]
    (config / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_whole(config)
    assert all(line.startswith("warning: passed over: ") for line in capsys.readouterr().err.splitlines())


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "huge"])
def test_what_is_no_file_stops_no_experiment(config, kind):
    path = config / "other.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 2**32)
    assert_whole(config)


def test_names_that_read_alike_when_joined_share_nothing(tmp_path):
    for place in (work_folder, run_folder):
        assert place(tmp_path, "x", "y-z", 0) != place(tmp_path, "x-y", "z", 0)
        assert place(tmp_path, "x", "y", 1) != place(tmp_path, "x", "y1", 0)
