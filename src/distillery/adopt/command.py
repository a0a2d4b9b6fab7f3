"""`distillery adopt`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from distillery.errors import printable


def adopt(
    file: Annotated[Path, Argument(help="timm's args.yaml, or a YAML of torchdistill.")],
    name: Annotated[str | None, Option(help="Of the recipe; by default that of the file or its folder.")] = None,
    devices: Annotated[int, Option(min=1, max=10**4, help="On how many it trained: others' batches are of one.")] = 1,
    config_dir: Annotated[Path, Option(help="Holds recipes/, to which the recipe is added.")] = Path("config"),
) -> None:
    """Turn somebody's settings into a recipe, and show the runs to write into a page.

    It says what was carried over, and of every other key why not.
    """
    from distillery.adopt.adopt import adopt_file

    for line in adopt_file(file, name, devices, config_dir):
        print(printable(line))
