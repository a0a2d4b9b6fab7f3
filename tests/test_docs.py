"""The files that documents name are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A path may begin in the repository, in the package or in the tests.
BASES = [ROOT, ROOT / "src/distillery", ROOT / "tests"]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/golden*/*.md")])
# docs/extending.md lets the reader write these.
TO_BE_WRITTEN = {"src/distillery/models/zoo/plain.py", "src/distillery/distill/losses/cka.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_a_page_names_are_there(page):
    # What runs make and what readers write lies in these folders, too.
    folders = {path.name for base in BASES for path in base.iterdir()} - {"config", "results", "data"}
    codes = re.findall(r"`([^`\n]+)`", page.read_text())
    words = {word.strip("()'\",") for code in codes for word in code.split()} - TO_BE_WRITTEN
    paths = [word for word in words if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)+/?", word) and word.split("/")[0] in folders]
    assert [path for path in paths if not any((base / path).exists() for base in BASES)] == []


def test_modules_that_the_architecture_names_are_there():
    modules = set(re.findall(r"`([\w/]+\.(?:py|smk))`", (ROOT / "README.md").read_text()))
    assert len(modules) > 20
    known = {path.name for folder in ("src", "workflow", "tests") for path in (ROOT / folder).rglob("*")}
    assert {module.rpartition("/")[2] for module in modules} - known == set()
