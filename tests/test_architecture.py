"""Dependencies point one way: command line, then stages, then parts, then configuration and ground."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distillery.experiment.schema.objective import TERMS

SOURCE = Path(__file__).parents[1] / "src" / "distillery"

# Each room may use what stands after the colon; every room may use itself and the ground.
GROUND = {"errors", "randomness", "paths", "results", "atomic", "provenance"}
MAY_USE = {
    "experiment": set(),
    "cluster": set(),
    "data": {"experiment", "cluster"},
    "models": {"experiment"},
    "distill": {"experiment", "models"},
    "evaluation": {"experiment", "data", "models"},
    "reporting": {"experiment", "data"},
    "training": {"experiment", "data", "models", "distill", "evaluation", "cluster"},
    "cli": {"experiment", "data", "models", "distill", "evaluation", "reporting", "training", "cluster"},
    "__main__": {"cli"},
    "__init__": set(),
    "losses": {"distill"},
}


def room(path):
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "distillery" else [f"distillery.{alias.name}" for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("distillery."):
                yield name.split(".")[1]


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_uses_only_what_it_may(path):
    allowed = MAY_USE.get(room(path), set()) | GROUND | {room(path), "__version__"}
    assert set(imported_rooms(path)) <= allowed


NAMELESS = [
    SOURCE / name
    for name in (
        "training/build.py",
        "training/inputs.py",
        "training/loop.py",
        "training/run.py",
        "training/initial.py",
        "experiment/experiment.py",
        "experiment/checks.py",
        "distill/objective.py",
        "distill/student.py",
    )
]


@pytest.mark.parametrize("path", NAMELESS, ids=lambda path: path.name)
def test_only_a_methods_own_files_know_it_by_name(path):
    words = set(re.findall(r"[a-z]+", path.read_text().lower()))
    assert not words & (set(TERMS) - {"ce", "kd"})


def test_the_public_face_is_there_and_costs_nothing_until_it_is_used():
    script = (
        "import sys, distillery\nassert not {'torch', 'pydantic'} & set(sys.modules)\n"
        "from distillery import create_model, load_experiment, losses, plan_taps, taps\n"
        "assert taps.plan_taps is plan_taps and losses.kd_loss and not hasattr(distillery, 'loss')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
