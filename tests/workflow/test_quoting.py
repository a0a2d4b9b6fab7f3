"""Names reach the shell in quotes, and only names that need none reach the rules."""

import re
from pathlib import Path

import pytest

from distillery.errors import UserError
from distillery.experiment.plan import Plan

ROOT = Path(__file__).parents[2]
SHELL = re.compile(r"^    shell:\n((?:        .*\n)+)", re.MULTILINE)


def test_every_path_and_wildcard_of_a_command_is_quoted():
    rules = [path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk")]
    commands = [command for rule in rules for command in SHELL.findall(rule)]
    assert len(commands) == 11
    for command in commands:
        assert re.search(r"\{log:q\}", command)
        assert not re.findall(r"\{(?:wildcards\.\w+|log|input|output|params\.\w+)\}", command)
        assert command.count("$CONFIG") == command.count('\\"$CONFIG\\"') + command.count('"$CONFIG"')


@pytest.mark.parametrize("name", ["im ages", "im`id`ages", "$(id)", "../up", "a;b", "-x"])
def test_a_name_that_a_shell_would_read_is_no_target(tmp_path, name):
    (tmp_path / "datasets.yaml").write_text(f"plain: {{path: data}}\n{name!r}: {{path: data}}\n")
    plan = Plan(tmp_path)
    assert plan.datasets() == ["plain"]
    with pytest.raises(UserError, match=r"cannot name a data set|no data set"):
        plan.dataset(name)
    if "/" not in name:
        (tmp_path / f"{name}.yaml").write_text(f"{name!r}: {{dataset: plain, runs: {{}}}}\n")
        assert plan.names() == []
