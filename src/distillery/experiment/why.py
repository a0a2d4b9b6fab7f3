"""Why a result is stale, or that it is not: the recorded ledger against the present one, key by key."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from distillery.errors import UserError
from distillery.experiment.experiment import Experiment
from distillery.experiment.ledger import MEASURED, PROBING, PROFILING, differences
from distillery.experiment.loading import experiment_names, load_experiment
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import PROBED, PROBES
from distillery.paths import RESULTS, dataset_folder, profile_path, run_folder
from distillery.results import try_json

FORMS = "a file of results/, e.g. results/tables/digits.md, or EXPERIMENT/RUN, or EXPERIMENT"


@dataclass(frozen=True)
class Finding:
    """What is to be said of a run's results with one seed: their folder, and what makes them stale, key by key."""

    folder: str
    state: Literal["up to date", "stale", "not made yet"]
    digest: str  # the present one
    reasons: tuple[str, ...] = ()


def describe(findings: Iterable[Finding], target: str, results: Path) -> Iterator[str]:
    """A line a finding, with the lines of what differs below it, indented."""
    for each in findings:
        yield f"{each.folder}: {each.state}" + f" (digest {each.digest})" * (each.state == "up to date")
        yield from (f"  {reason}" for reason in each.reasons)
    made = [folder / what for folder in (results, RESULTS) for what in ("tables", "figures")]
    if any(Path(target).is_relative_to(folder) for folder in made):
        yield "Layout and published numbers are in no record; `snakemake -n` compares them."


def explain(target: str, config: Path, results: Path, *, rehearsal: bool = False) -> Iterator[Finding]:
    """Say for each run behind a target whether its results are those of the present configuration.

    A target is a result's path, ``EXPERIMENT/RUN[/seedK]`` or ``EXPERIMENT``.

    Raises:
        UserError: the target belongs to no experiment, run or seed.
    """
    name, run, seed, table = parse_target(target, config, results)
    experiment = load_experiment(config / f"{name}.yaml", rehearsal=rehearsal)
    if run is not None:
        chosen = [run]
        experiment.spec(run, seed)
    elif table is not None:
        if table not in experiment.config.tables:
            raise UserError(f"{target}: no table {table!r}; {nearest(table, experiment.config.tables)}")
        shown = experiment.config.tables[table]
        chosen = list(dict.fromkeys([*shown.runs(), *([shown.baseline] if shown.baseline else [])]))
    else:
        chosen = list(experiment.config.runs)
    for name in chosen:
        for each in experiment.seeds(name) if seed is None else [seed]:
            yield _explain_run(experiment, name, each, results)
    for ancestor, name in experiment.family(chosen):
        if ancestor is not experiment or name not in chosen:
            # Others start from and learn from the first seed.
            yield _explain_run(ancestor, name, ancestor.seeds(name)[0], results)


def parse_target(target: str, config: Path, results: Path) -> tuple[str, str | None, int | None, str | None]:
    """The experiment, run, seed and table that a target names.

    Raises:
        UserError: there is no such experiment.
    """
    path = Path(target)
    # A rehearsal's targets are written as the workflow has them.
    below = next((folder for folder in (results, RESULTS) if path.is_relative_to(folder)), None)
    parts = list(path.parts if below is None else path.relative_to(below).parts)
    if parts[:1] == ["datasets"]:
        raise UserError(
            f"{target}: prepared images hold no record of their line in datasets.yaml; `snakemake -n {target}` says "
            "whether they would be made again, and `distillery why EXPERIMENT` which runs saw others"
        )
    if parts and parts[0] in ("tables", "figures") and len(parts) > 1:
        file = re.fullmatch(r"(.+)\.(?:md|tex|csv|html)", parts[-1])
        parts[-1] = file[1] if file else parts[-1]
        table = parts[2] if parts[0] == "tables" and len(parts) > 2 else None
        parts = [parts[1]]
    else:
        table = None
    name = Path(parts[-1]).stem if path.suffix == ".yaml" and path.parent == config else parts[0] if parts else ""
    known = experiment_names(config)
    if name not in known:
        raise UserError(f"{target}: expected {FORMS}; no experiment {name!r}, {nearest(name, known)}")
    if path.suffix == ".yaml" or len(parts) < 2:
        return name, None, None, table
    found = re.fullmatch(r"seed(\d+)", parts[2]) if len(parts) > 2 else None
    if found is None and len(parts) > 2 and parts[2].startswith("seed"):
        raise UserError(f"{target}: no seed {parts[2]!r}; expected e.g. seed0")
    return name, parts[1], int(found[1]) if found else None, table


def _explain_run(experiment: Experiment, run: str, seed: int, results: Path) -> Finding:
    folder, spec = run_folder(results, experiment.name, run, seed), experiment.spec(run, seed)
    is_there = (folder / "weights.safetensors").is_file()  # in a folder of another user, this is an error
    record = try_json(folder / "run.json")
    if record is None or not is_there:
        return Finding(str(folder), "not made yet", spec.digest)
    reasons = stale_for(experiment, run, seed, results, record, images_digest(results, spec.dataset))
    return Finding(str(folder), "stale" if reasons else "up to date", spec.digest, tuple(reasons))


def images_digest(results: Path, dataset: str) -> Any:  # noqa: ANN401
    """What a prepared data set's manifest says of its images; None where none can be read."""
    return (try_json(dataset_folder(results, dataset) / "manifest.json") or {}).get("digest")


def stale_for(
    experiment: Experiment, run: str, seed: int, results: Path, record: dict[str, Any], images: object
) -> list[str]:
    """What differs between a run's results, of which ``record`` is run.json, and the present configuration, key by key.

    ``images`` is the digest of the data set's images as they are now; None passes that over.
    """
    folder, spec = run_folder(results, experiment.name, run, seed), experiment.spec(run, seed)
    reasons = differences(record.get("spec") or {}, spec.ledger)
    if not reasons and record.get("digest") != spec.digest:
        reasons = [f"digest: {record.get('digest')} -> {spec.digest}"]
    if images is not None and images != record.get("manifest_digest"):
        reasons.append(f"images of {spec.dataset}: {record.get('manifest_digest')} -> {images}")
    # A run's profile is of its first seed.
    profiled = [profile_path(results, experiment.name, run)] if seed == experiment.seeds(run)[0] else []
    probed, shown = try_json(folder / PROBES), experiment.probes(run)
    if probed and (found := [name for name in PROBED if name in probed]) != shown:
        reasons.append(f"{PROBES}: {', '.join(found)} -> {', '.join(shown)}")
    for path in [folder / "metrics.json", folder / PROBES, *profiled]:
        measured = try_json(path) or {}
        expected = {
            "digest": record.get("digest"),
            "evaluation": MEASURED,
            "probing": PROBING,
            "profiling": PROFILING,
        }
        for key, now in expected.items():
            if measured.get(key, now) != now:
                reasons.append(f"{path.name}: {key}: {measured[key]} -> {now}")
    return reasons
