"""From a finished run to a folder that somebody else loads, whole or not at all."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from distillery.atomic import new_folder, write_json, write_text
from distillery.errors import UserError, printable
from distillery.evaluation.restore import FinishedRun, restore_folder
from distillery.experiment.plugins import use_project
from distillery.experiment.reading import nearest
from distillery.export.card import RunName, write_card
from distillery.export.formats import FORMATS, describe
from distillery.results import command, try_json

# Of the largest logit, or of 1 where that is smaller: what other kernels and orders of summation make of float32.
TOLERANCE = 1e-4
IMAGES = 4


def export_runs(
    run: str, to: str, out: Path | None, seed: int | None, config_dir: Path, results: Path
) -> Iterator[str]:
    """Export a run or, where an experiment is named, each of its trained runs into a folder of its own below ``out``.

    Raises:
        UserError: as ``export_run``; of an experiment, the others are exported before.
    """
    shelf = find_shelf(run, results)
    if not shelf:
        yield from export_run(run, to, out, seed, config_dir, results)
        return
    failed = []
    for base in shelf:
        try:
            folder = find_run(str(base), seed, results)
            place = (out or Path("exports", base.parent.name)) / f"{base.name}-{folder.name}"
            place = place if out else place / to
            if place.exists():
                yield f"{place}: is there already, and was left alone"
                continue
            yield from export_run(str(folder), to, place, None, config_dir, results)
        except UserError as error:
            failed.append(base.name)
            print(printable(f"distillery: {error}"), file=sys.stderr)
    if failed:
        raise UserError(f"{run}: {len(failed)} of {len(shelf)} runs could not be exported: {', '.join(failed)}")


def find_shelf(experiment: str, results: Path) -> list[Path]:
    """The folders of an experiment's trained runs, given by its name or as a folder; none if it is a run or nothing."""
    base = Path(experiment) if Path(experiment).is_dir() else results / experiment
    records = ((path.parent.parent, try_json(path)) for path in sorted(base.glob("*/seed*/run.json")))
    return list(dict.fromkeys(run for run, record in records if record and (record.get("spec") or {}).get("recipe")))


def export_run(run: str, to: str, out: Path | None, seed: int | None, config_dir: Path, results: Path) -> Iterator[str]:
    """Export a run, and say where it lies and how closely its logits agree.

    Raises:
        UserError: there is no such run or it is not finished, the format cannot hold its network, the folder is there
            already, or the exported network gives other logits.
    """
    folder = find_run(run, seed, results)
    if config_dir.is_dir():
        use_project(config_dir.resolve().parent)  # a network may be a plugin's
    finished = restore_folder(folder)
    place, record = folder.resolve(), finished.record
    name = RunName(place.parent.parent.name, record.get("run", place.parent.name), record.get("seed", 0))
    out = out or Path("exports", name.experiment, f"{name.run}-seed{name.seed}", to)
    with new_folder(out) as temporary:
        predict = FORMATS[to](finished, temporary)
        difference, limit = check_logits(finished, predict, to)
        if not (temporary / "config.json").exists():
            write_json(temporary / "config.json", describe(finished, to))
        write_text(temporary / "README.md", write_card(finished, name, to, config_dir, results))
    yield f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}"
    yield f"logits of {IMAGES} images differ by {difference:.1e} at most (tolerance {limit:.1e})"


def find_run(run: str, seed: int | None, results: Path) -> Path:
    """The folder of a finished run, given by EXPERIMENT/RUN or as a folder.

    Raises:
        UserError: there is none, or it is not finished.
    """
    base = Path(run) if Path(run).is_dir() else results / run
    if (base / "run.json").is_file() or re.fullmatch(r"seed\d+", base.resolve().name):
        if seed is not None and base.resolve().name != f"seed{seed}":
            raise UserError(f"--seed: {base} is one seed's folder; leave --seed out")
        folder = base
    else:
        seeds = sorted(int(path.name[4:]) for path in base.glob("seed*") if path.name[4:].isdigit())
        if not seeds:
            known = {path.parent.parent.relative_to(results).as_posix() for path in results.glob("*/*/seed*/run.json")}
            raise UserError(f"{run}: no such run in {results}; {nearest(run, sorted(known))}")
        if seed is not None and seed not in seeds:
            raise UserError(f"--seed: {run} has no seed {seed} in {results}; valid: {', '.join(map(str, seeds))}")
        finished = [each for each in seeds if (base / f"seed{each}" / "run.json").is_file()]
        folder = base / f"seed{(finished or seeds)[0] if seed is None else seed}"
    if not (folder / "run.json").is_file():
        place = folder.resolve()
        page, number = Path("config", f"{place.parent.parent.name}.yaml"), place.name[4:]
        made_by = command("train", page, place.parent.name, int(number) if number.isdigit() else None, results)
        raise UserError(f"{folder}: not finished, for it has no run.json; finish it with: {made_by}")
    return folder


@torch.no_grad()
def check_logits(finished: FinishedRun, predict: Callable[[Tensor], Tensor], to: str) -> tuple[float, float]:
    """See that an exported network gives a run's logits, for batches of different sizes; by how much they differ.

    Raises:
        UserError: they differ by more than the tolerance, or the exported network fails.
    """
    size = finished.preprocess.size
    images = torch.rand(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = finished.predict(images)
    try:
        found = torch.cat([predict(part).detach().float() for part in (images[:1], images[1:])])
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--to: {to} cannot hold this network: {first_line(error)}") from error
    limit = TOLERANCE * max(1.0, float(expected.abs().max()))
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    if not difference <= limit:
        raise UserError(
            f"--to: the network exported to {to} gives other logits (difference {difference:.1e}, tolerance "
            f"{limit:.1e}); nothing was written"
        )
    return difference, limit


def first_line(error: Exception) -> str:
    """An error of a library in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
