"""The schemas for editors accept what the reader accepts."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from distillery.experiment.json_schema import schemas

CONFIG = Path(__file__).parents[2] / "config"
FILES = [
    *[("experiment", path) for path in CONFIG.glob("*.yaml") if path.name != "datasets.yaml"],
    *[("recipe", path) for path in CONFIG.glob("recipes/*.yaml")],
    ("datasets", CONFIG / "datasets.yaml"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_the_files_of_the_repository_fit_and_name_their_schema(kind, path):
    jsonschema.validate(yaml.safe_load(path.read_text()), schemas()[kind])
    hint = path.read_text().splitlines()[0]
    assert hint.startswith("# yaml-language-server: $schema=")
    target = (path.parent / hint.partition("=")[2]).resolve()
    assert target == CONFIG.parent / "workflow" / "schemas" / f"{kind}.schema.json"


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("epochs", 3, True),
        ("epochs", 0, False),
        ("epohs", 3, False),
        ("optimizer", {"lr": 3}, True),
        ("optimizer", 3, False),
        ("precision", "fp8", False),
        ("objective", {"kdd": {}}, False),
    ],
)
def test_runs_may_override_recipes_but_not_invent_keys(key, value, legal):
    experiment = yaml.safe_load((CONFIG / "digits.yaml").read_text())
    experiment["digits"]["runs"]["resnet8"][key] = value
    found = jsonschema.Draft202012Validator(schemas()["experiment"]).is_valid(experiment)
    assert found is legal
