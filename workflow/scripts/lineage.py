# ruff: noqa: E501
"""Write the jobs of an experiment and what they descend from, a job a line, so that a commit shows which jobs it touches."""

import json
from pathlib import Path
from typing import Any


def write(content: dict[str, Any], path: Path) -> None:
    """Write a file at once or not at all."""
    blocks = [f"  {json.dumps(key)}: {block(value)}" for key, value in content.items()]
    partial = path.with_suffix(".partial")
    partial.write_text("{\n" + ",\n".join(blocks) + "\n}\n", encoding="utf-8")
    partial.replace(path)


def block(value: Any) -> str:  # noqa: ANN401
    """A mapping of mappings gets a line for each of them."""
    if not isinstance(value, dict) or not value or not all(isinstance(inner, dict) for inner in value.values()):
        return json.dumps(value)
    lines = [f"    {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()]
    return "{\n" + ",\n".join(lines) + "\n  }"


for name in ("jobs", "lineage"):
    write(snakemake.params[name], Path(snakemake.output[name]))  # type: ignore[name-defined]  # noqa: F821
