"""What several commands have: arguments, options, what a shell may complete them with, and data for programs."""

import json
import math
import re
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.reading import read_mapping
from distillery.experiment.schema.block import NAME_PATTERN
from distillery.paths import REHEARSAL, RESULTS

CONFIG_DIR = Path("config")


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    """Runs of the experiment that the command line names so far, for the shell to complete."""
    try:
        return [
            run for run in load_experiment(Path(context.params["config"])).config.runs if run.startswith(incomplete)
        ]
    except (UserError, KeyError, TypeError):
        return []


def _datasets(incomplete: str) -> list[str]:
    try:
        return [name for name in read_mapping(CONFIG_DIR / "datasets.yaml") if name.startswith(incomplete)]
    except UserError:
        return []


def plain_name(name: str | None) -> str | None:
    """A data set names a folder, and must not lead out of the one that it is in."""
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise typer.BadParameter(f"{name!r} cannot name a data set; use letters, digits and . _ - only")
    return name


def _results(context: typer.Context, folder: Path) -> Path:
    """A rehearsal by hand never takes the place of real results: by default it lies where the workflow's lie."""
    source = context.get_parameter_source("results")
    by_default = source is not None and source.name == "DEFAULT"
    return REHEARSAL / RESULTS if by_default and context.params.get("rehearsal") else folder


Config = Annotated[Path, Argument(help="An experiment file, e.g. config/digits.yaml.")]
Run = Annotated[str, Argument(help="A line under `runs:`, e.g. resnet8-kd.", autocompletion=_runs)]
Dataset = Annotated[str, Argument(help="A line of datasets.yaml.", autocompletion=_datasets, callback=plain_name)]
Model = Annotated[str, Argument(help="A model's name, e.g. mobilenet_v2.")]
Seed = Annotated[int | None, Option(min=0, help="One of the run's seeds; by default the first.")]
ConfigDir = Annotated[Path, Option(help="Holds datasets.yaml, experiments and recipes.")]
# Trap: the callback sees `rehearsal`, for click takes options that were given before those that were not.
Results = Annotated[Path, Option(help="Results folder.", callback=_results)]
Workers = Annotated[int, Option(min=0, max=1024, help="Processes that read images.")]
Threads = Annotated[int | None, Option(min=1, max=4096, help="CPU threads for the network; by default torch's choice.")]
Speed = Annotated[
    str,
    Option(
        help="The machine's choices, as fused=off,compile=teacher; by default $DISTILLERY_SPEED. See docs/speed.md."
    ),
]
Rehearsal = Annotated[bool, Option("--rehearsal", help="A few steps on generated images, in results/rehearsal/.")]
AsJson = Annotated[bool, Option("--json", help="For programs.")]
Track = Annotated[str, Option(help="Trackers that watch: wandb, mlflow, trackio; by default $DISTILLERY_TRACK.")]
Partial = Annotated[bool, Option("--partial", help="Mark what is missing instead of refusing it.")]


def finite(value: float) -> float:
    """NaN is in every range, and infinity in those that are open above."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def print_json(data: object) -> None:
    """What ``--json`` asks for."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))
