"""What an experiment file need not write run by run: defaults, combinations, and grids over these.

All of it is written out before the schema sees the runs, so that a run of a sweep is a run like any other.
"""

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from distillery.errors import UserError
from distillery.experiment.reading import nearest, validate
from distillery.experiment.schema.experiment import Sweep

MOST_RUNS = 10_000


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay keys over others, mapping by mapping; a block that changes its `name` replaces the other whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            value = merged(old, value)
        result[key] = value
    return result


def written_out(path: Path, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """An experiment with all its runs under ``runs`` and all runs of its grids; what is misshapen is the schema's.

    Raises:
        UserError: a sweep makes a run that is there already or too many, or excepts one that it does not make.
    """
    runs, defaults, sweeps, tables = (body.get(key, {}) for key in ("runs", "defaults", "sweep", "tables"))
    if not isinstance(runs, dict) or not isinstance(defaults, dict) or not isinstance(sweeps, dict):
        return body
    every = dict(runs)
    for sweep, written in sweeps.items():
        where = f"{path}: {name}.sweep.{sweep}"
        for run, keys in _combinations(validate(Sweep, written, path, (name, "sweep", str(sweep))), where):
            if run in every:
                raise UserError(f"{where}: there is another run {run!r} already; rename one")
            every[run] = keys
    body = body | {"runs": {run: merged(defaults, keys) if _is_trained(keys) else keys for run, keys in every.items()}}
    if isinstance(tables, dict):
        body["tables"] = {
            table: _with_grid(f"{path}: {name}.tables.{table}.grid", block, every) for table, block in tables.items()
        }
    return body


def _is_trained(keys: object) -> bool:
    """Whether a run takes the defaults: not one that only imports weights."""
    return isinstance(keys, dict) and ("recipe" in keys or "weights" not in keys)


def _combinations(sweep: Sweep, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every run of a sweep that is not left out: its name, and its keys."""
    count = math.prod(map(len, sweep.over.values()))
    if count > MOST_RUNS:
        raise UserError(f"{where}.over: {count:,} runs are more than {MOST_RUNS:,}; take values out")
    names = ["-".join(choice) for choice in product(*sweep.over.values())]
    for run in sweep.but:
        if run not in names:
            raise UserError(f"{where}.but: no run {run!r}; {nearest(run, names)}")
    for name, choice in zip(names, product(*(axis.values() for axis in sweep.over.values())), strict=True):
        other = sweep.but.get(name, {})
        if other is not None:
            keys: dict[str, Any] = {}
            for part in (*choice, other):
                keys = merged(keys, part)
            yield name, keys


def _with_grid(where: str, table: object, runs: dict[str, Any]) -> object:
    """A table whose grid names its runs one by one, where it has patterns for whole rows."""
    grid = table.get("grid") if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(grid, dict) or not isinstance(grid.get("down"), dict):
        return table
    across = grid.get("across")
    down: dict[Any, Any] = {}
    for heading, row in grid["down"].items():
        if isinstance(row, str):
            if not isinstance(across, dict) or "*" not in row:
                raise UserError(
                    f"{where}.down.{heading}: {row!r} is no list of runs; a pattern like '*-kd' needs a * and, in "
                    "`across`, what it stands for in each column: {heading: word}"
                )
            found = [row.replace("*", str(word)) for word in across.values()]
            if not any(run in runs for run in found):
                raise UserError(f"{where}.down.{heading}: no run is like {row!r}; {nearest(found[0], runs)}")
            row = [run if run in runs else None for run in found]
        down[heading] = row
    return table | {"grid": grid | {"down": down}}
