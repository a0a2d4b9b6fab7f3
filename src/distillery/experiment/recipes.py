"""Recipes by themselves: one by its name, or the one that a data set is mostly trained by."""

from collections import Counter
from pathlib import Path

from distillery.errors import UserError
from distillery.experiment.experiment import load_experiments
from distillery.experiment.reading import nearest, read_mapping, validate
from distillery.experiment.schema.recipe import Recipe


def load_recipe(folder: Path, name: str) -> Recipe:
    """Read recipes/<name>.yaml of a configuration folder.

    Raises:
        UserError: there is none, or it is wrong.
    """
    path = folder / "recipes" / f"{name}.yaml"
    if not path.is_file():
        known = [found.stem for found in path.parent.glob("*.yaml")]
        raise UserError(f"--recipe: no file {path}; {nearest(name, known)}")
    return validate(Recipe, read_mapping(path), path)


def usual_recipe(folder: Path, dataset: str) -> str | None:
    """The recipe that most runs on a data set train by, over all experiments of a configuration folder.

    Raises:
        UserError: an experiment is wrong.
    """
    names = Counter(
        line.recipe
        for experiment in load_experiments(folder).values()
        if experiment.config.dataset == dataset
        for line in experiment.config.runs.values()
        if line.recipe is not None
    )
    return names.most_common(1)[0][0] if names else None
