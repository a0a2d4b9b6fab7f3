"""From a file of another project to a recipe, a page's runs, and an account of what did not come along."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distillery.adopt.timm import adopt_timm
from distillery.adopt.torchdistill import adopt_torchdistill
from distillery.atomic import write_text
from distillery.errors import UserError, keyed
from distillery.experiment.reading import read_mapping, validate
from distillery.experiment.schema.block import LONGEST_NAME, NAME_PATTERN
from distillery.experiment.schema.experiment import RunConfig
from distillery.experiment.schema.recipe import Recipe
from distillery.training.optim import check_optimizer

SCHEMA = "# yaml-language-server: $schema=../../workflow/schemas/recipe.schema.json\n"


def adopt_file(file: Path, name: str | None, devices: int, config_dir: Path) -> Iterator[str]:
    """Write ``config_dir``/recipes/NAME.yaml, and say what it holds of a file and what not.

    Raises:
        UserError: the file is none of timm's or torchdistill's, what it says makes no recipe, or there is one of that
            name.
    """
    # torchdistill joins words by a tag of its own; every other tag is refused, as in pages.
    given = read_mapping(file, joins=True)
    name = name or _name_of(file)
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > LONGEST_NAME:
        raise UserError(f"--name: {name!r} cannot name a recipe; use letters, digits and . _ -, letter or digit first")
    if {"models", "train"} <= given.keys():
        adopted, source = adopt_torchdistill(given, file, name, devices), "torchdistill"
    elif {"model", "epochs"} <= given.keys() and not isinstance(given["model"], dict):
        adopted, source = adopt_timm(given, file, name, devices), "timm"
    else:
        raise UserError(
            f"{file}: is neither timm's args.yaml (with `model` and `epochs`) nor a YAML of torchdistill (with "
            "`models` and `train`)"
        )
    recipe = validate(Recipe, adopted.recipe, file)
    with keyed(str(file)):
        check_optimizer(recipe.optimizer)
    for run, line in adopted.runs.items():
        validate(RunConfig, line, file, ("runs", run))
    path = config_dir / "recipes" / f"{name}.yaml"
    if path.exists():
        raise UserError(f"{path}: is there already; give another --name")
    write_text(path, f"{SCHEMA}# From {file.name} of {source}.\n{_as_yaml(adopted.recipe)}")
    yield f"{path}: written from {source}'s {file}"
    yield f"\nCarried over: {', '.join(adopted.carried)}"
    if adopted.assumed:
        yield "\nTo look at:"
        yield from (f"  {line}" for line in adopted.assumed)
    if adopted.left:
        yield "\nNot carried over:"
        yield from (f"  {line}" for line in adopted.left)
    if adopted.without_effect:
        yield f"\nOf the machine, or without effect here: {', '.join(adopted.without_effect)}"
    yield "\nFor `runs:` of a page:"
    yield from (f"    {line}" for line in _as_yaml(adopted.runs).splitlines())


def _name_of(file: Path) -> str:
    stem = file.resolve().parent.name if file.stem == "args" else file.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "adopted"


class _Dumper(yaml.SafeDumper):
    """Writes numbers so that strict readers take them for numbers."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401
        return True


def _as_yaml(content: Any) -> str:  # noqa: ANN401
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
