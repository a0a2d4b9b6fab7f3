"""JSON Schemas of the YAML files, for editors (YAML language server) and other checkers."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from distillery.atomic import write_json
from distillery.experiment.schema.dataset import Dataset
from distillery.experiment.schema.experiment import ExperimentConfig
from distillery.experiment.schema.recipe import Recipe


def write_schemas(folder: Path) -> None:
    """Write experiment, recipe and datasets .schema.json into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        write_json(folder / f"{name}.schema.json", schema)


def schemas() -> dict[str, dict[str, Any]]:
    """The schema of each kind of file, by kind."""
    return {
        "experiment": _experiment_schema(),
        "recipe": Recipe.model_json_schema(),
        "datasets": TypeAdapter(dict[str, Dataset]).json_schema(),
    }


def _experiment_schema() -> dict[str, Any]:
    """An experiment file has one key, the experiment's name; its runs may also carry any key of a recipe."""
    schema = TypeAdapter(dict[str, ExperimentConfig]).json_schema()
    schema |= {"minProperties": 1, "maxProperties": 1}
    recipe = Recipe.model_json_schema()
    for name, definition in recipe.pop("$defs").items():
        schema["$defs"].setdefault(name, definition)
    del schema["$defs"]["RunConfig"]["required"]  # `defaults` may have it
    schema["$defs"]["RunConfig"]["properties"] |= {key: _partial(value) for key, value in recipe["properties"].items()}
    return schema


def _partial(key: dict[str, Any]) -> dict[str, Any]:
    """An override may name only some keys of a block, so blocks are left open; plain values keep their checks."""
    is_block = (
        "$ref" in key or "oneOf" in key or any("$ref" in option or "oneOf" in option for option in key.get("anyOf", ()))
    )
    if not is_block:
        return key
    return {"type": ["object", "null"], **{word: key[word] for word in ("description",) if word in key}}
