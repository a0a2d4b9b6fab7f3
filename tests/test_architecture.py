"""Dependencies point one way: command line, then stages, then parts, then configuration and ground."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from distillery.experiment.schema.objective import TERMS

SOURCE = Path(__file__).parents[1] / "src" / "distillery"

# Each room may use what stands after the colon; every room may use itself and the ground.
GROUND = {
    "accelerator", "errors", "randomness", "paths", "process", "results", "atomic", "provenance", "tracking", "imports",
}  # fmt: skip
MAY_USE = {
    "experiment": set(),
    "cluster": set(),
    "data": {"experiment", "cluster"},
    "models": {"experiment"},
    "distill": {"experiment", "models"},
    "evaluation": {"experiment", "data", "models", "reporting"},
    "reporting": {"experiment", "data", "cluster"},
    "training": {"experiment", "data", "models", "distill", "evaluation", "reporting", "cluster"},
    "adopt": {"experiment", "models", "training"},
    "export": {"experiment", "models", "evaluation", "reporting"},
    "project": {"experiment", "data"},
    "options": {"experiment"},
    "cli": {
        "options",
        "experiment",
        "data",
        "models",
        "distill",
        "evaluation",
        "reporting",
        "training",
        "cluster",
        "project",
        "commands",
        "adopt",
        "export",
    },
    "commands": {"options", "experiment", "reporting", "evaluation", "training"},
    "__main__": {"cli"},
    "__init__": set(),
    "losses": {"distill"},
}


FILES = {
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imported_modules(path):
    """The project's own modules that a file imports, anywhere in it: also inside functions, also for types alone."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    # What is imported from a module may be a module itself.
    return {name if name in FILES else name.rpartition(".")[0] for name in names} & set(FILES)


@pytest.mark.slow
def test_imports_go_in_no_circle():
    TopologicalSorter({name: imported_modules(path) for name, path in FILES.items()}).prepare()


@pytest.mark.parametrize("path", FILES.values(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_uses_only_what_it_may(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    used = {name.split(".")[1] for name in imported_modules(path) if "." in name}
    assert used <= MAY_USE.get(room, set()) | GROUND | {room}


NAMELESS = [
    SOURCE / name
    for name in (
        "training/build.py",
        "training/inputs.py",
        "training/loop.py",
        "training/run.py",
        "training/initial.py",
        "experiment/experiment.py",
        "experiment/loading.py",
        "experiment/checks.py",
        "distill/objective.py",
        "distill/student.py",
    )
]


@pytest.mark.parametrize("path", NAMELESS, ids=lambda path: path.name)
def test_only_a_methods_own_files_know_it_by_name(path):
    words = set(re.findall(r"[a-z]+", path.read_text().lower()))
    assert not words & (set(TERMS) - {"ce", "kd", "at", "cat"})


@pytest.mark.slow
def test_the_public_face_is_there_and_costs_nothing_until_it_is_used():
    script = (
        "import sys, distillery\nassert not {'torch', 'pydantic'} & set(sys.modules)\n"
        "from distillery import create_model, load_experiment, losses, plan_taps, taps\n"
        "assert taps.plan_taps is plan_taps and losses.kd_loss and not hasattr(distillery, 'loss')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
