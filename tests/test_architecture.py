"""Dependencies point one way: command line, then stages, then parts, then configuration and ground."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "distillery"

# Each room may use what stands after the colon; every room may use itself and the ground.
GROUND = {"errors", "randomness", "paths", "results", "atomic", "provenance"}
MAY_USE = {
    "experiment": set(),
    "cluster": set(),
    "data": {"experiment"},
    "models": {"experiment"},
    "distill": {"experiment", "models"},
    "evaluation": {"experiment", "data", "models"},
    "reporting": {"experiment", "data"},
    "training": {"experiment", "data", "models", "distill", "evaluation", "cluster"},
    "cli": {"experiment", "data", "models", "distill", "evaluation", "reporting", "training", "cluster"},
    "__main__": {"cli"},
    "__init__": set(),
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


def test_the_loop_knows_no_method_by_name():
    text = (SOURCE / "training" / "loop.py").read_text().lower()
    for method in ("mgd", "bake", "overhaul", "usi", "kd_loss", "hinton"):
        assert f" {method}" not in text
