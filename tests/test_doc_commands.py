"""Commands that the documentation shows are commands that there are, with options that they have."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from distillery.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "config" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEN = ROOT / "docs" / "ten-minutes.md"


def commands(lines):
    """The command lines among lines, without settings in front and without comments."""
    for line in lines:
        for part in re.split(r"\s(?:&&|\|)\s|;", line.partition(" # ")[0]):
            if re.match(r"([A-Z_]+=\S* )*(distillery|snakemake|make) ", part):
                words = shlex.split(part)
                yield words[[word in ("distillery", "snakemake", "make") for word in words].index(True) :]


def in_blocks(page):
    """Those that stand on lines of their own."""
    return commands(re.findall(r"^(?: {4,})?(\S.*)$", page.read_text().replace("\\\n", " "), flags=re.MULTILINE))


def within_text(page):
    """Those that a sentence mentions, which may leave out what they are about."""
    return commands(re.findall(r"`((?:distillery|snakemake|make) [^`\n]+)`", page.read_text()))


def read(words):
    """Read a command line as its program would, and do nothing."""
    if words[0] == "make":
        targets = re.findall(r"^([a-z./-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "snakemake":
        from snakemake.cli import get_argument_parser

        get_argument_parser().parse_args(words[1:])
    else:
        name, command, rest, context = found(words)
        if command is not None:
            command.make_context(name, rest, parent=context)


def found(words):
    """The command of a line of `distillery`, None for an option of the whole program, and what is said to it."""
    group = typer.main.get_command(app)
    context = group.make_context("distillery", [], resilient_parsing=True)
    if words[1].startswith("--"):
        assert any(words[1] in parameter.opts for parameter in group.params)
        return "", None, [], context
    name, command, rest = group.resolve_command(context, words[1:])
    assert command is not None, f"no command {words[1]}"
    return name, command, rest, context


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_the_documentation_are_read_by_their_programs(page):
    for words in in_blocks(page):
        try:
            read(words)
        except (AssertionError, SystemExit, typer.TyperException) as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from None
    for words in within_text(page):
        if words[0] == "distillery":
            _, command, rest, _ = found(words)
            known = {name for parameter in (command.params if command else ()) for name in parameter.opts} | {"--help"}
            assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, " ".join(words)


def test_ten_minutes_are_ten_things_of_one_command_each():
    items = re.split(r"^\d+\. ", TEN.read_text(), flags=re.MULTILINE)[1:]
    blocks = [re.findall(r"^ {8}(\S.*)$", item, flags=re.MULTILINE) for item in items]
    assert [len(block) for block in blocks] == [1] * 10
    assert len(list(in_blocks(TEN))) == 9  # and pip's
