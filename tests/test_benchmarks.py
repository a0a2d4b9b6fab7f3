"""The benchmarks run against whatever the house is now, and `make bench` says what it could not measure."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path("benchmarks").absolute()
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    for script in SCRIPTS:  # plain names that others may want
        monkeypatch.delitem(sys.modules, script, raising=False)
    yield
    for script in SCRIPTS:
        sys.modules.pop(script, None)


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_benchmark_takes_from_the_house_is_there(script):
    importlib.import_module(script)


def test_a_ratio_below_its_goal_is_marked():
    rows = importlib.import_module("rows")
    taken = {"ours": [1.0, 2.0, 5.0], "theirs": [2.0, 2.0, 2.0]}
    row = rows.beside("step", "a step", taken, "ours", "theirs", goal=1.5, unit="images/s", per=8)
    assert (row.ours, row.theirs, row.ratio, row.missed) == (4.0, 4.0, 1.0, True)
    assert "**missed**" in rows.table([row])
    assert "reached" in rows.table([rows.within("start-up", "check", 1.0, 1.5, "CPU s")])


def test_a_part_that_fails_leaves_its_rows_and_one_that_says_why(tmp_path, monkeypatch):
    run, rows = importlib.import_module("run"), importlib.import_module("rows")
    script = tmp_path / "part.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom rows import Row, write\n"
        "write([Row('part', 'first', ratio=2.0)], Path(sys.argv[-1]))\nimport no_such_library\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setitem(run.PARTS, "part", (str(script),))
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "part", "--to", str(tmp_path / "table.md")])
    first, second = run.run_part("part", tmp_path)
    assert first == rows.Row("part", "first", ratio=2.0)
    assert "no_such_library" in second.reason
    (tmp_path / "part.jsonl").unlink()
    assert run.main() == 1
    assert "no_such_library" in (tmp_path / "table.md").read_text()
