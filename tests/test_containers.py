"""What can be known of Dockerfile and distillery.def without a container engine: they are held to each other."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]


def sections() -> dict[str, list[str]]:
    """The sections of distillery.def; the header is under an empty name."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in (ROOT / "distillery.def").read_text().splitlines():
        if line.startswith("%"):
            name = line[1:].strip()
            found[name] = []
        elif line.strip() and not line.startswith("#"):
            found[name].append(line.strip())
    return found


def copied() -> list[str]:
    return [source for name, arguments in instructions() if name == "COPY" for source in arguments.split()[:-1]]


def test_both_images_have_one_base():
    (base,) = [arguments for name, arguments in instructions() if name == "FROM"]
    assert sections()[""] == ["Bootstrap: docker", f"From: {base}"]
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu24\.04", base)


def test_its_python_is_one_that_the_project_supports():
    """Ubuntu 24.04 has Python 3.12."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        low, high = re.findall(r"3\.(\d+)", tomllib.load(file)["project"]["requires-python"])
    assert int(low) <= 12 < int(high)


def test_both_copy_the_same_files_and_all_of_them_exist():
    taken = [line.split()[0] for line in sections()["files"]]
    assert sorted(copied()) == sorted(taken)
    assert all((ROOT / name).exists() for name in taken)


def test_the_build_context_holds_what_is_copied():
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for name in copied():
        kept = True
        for pattern in patterns:
            if fnmatch(name, pattern.removeprefix("!")):
                kept = pattern.startswith("!")
        assert kept, name


@pytest.mark.parametrize("text", ["--require-hashes", "--no-deps --no-build-isolation /tmp/build", "python3-venv"])
def test_both_install_alike(text):
    runs = " ".join(arguments for name, arguments in instructions() if name == "RUN")
    assert text in re.sub(r"\s+", " ", runs)
    assert text in " ".join(sections()["post"])


def test_nobody_is_root():
    users = [arguments for name, arguments in instructions() if name == "USER"]
    assert users[-1] == "10001"


def test_the_definition_has_known_sections():
    assert set(sections()) == {"", "files", "post", "environment", "runscript", "test", "labels"}


def test_the_workflow_names_the_image():
    assert 'container: "distillery.sif"' in (ROOT / "workflow" / "Snakefile").read_text()
