"""Which code made the runs behind a table: commits and versions, as their run.json says."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distillery.experiment import Experiment
from distillery.paths import run_folder
from distillery.reporting.markup import enumerated
from distillery.results import command, read_json, unusable

# A difference in these may be behind a difference in results.
PACKAGES = ("distillery", "torch")


class Origin(NamedTuple):
    """What a process ran on that made a run, or a part of it: its code as words, and versions of ``PACKAGES``."""

    code: str
    dirty: bool
    versions: tuple[str, ...]


def read_origins(experiment: Experiment, run: str, results: Path, *, partial: bool = False) -> frozenset[Origin]:
    """Read what the seeds of a run were made by; a run that was stopped may have been continued by other code.

    Raises:
        UserError: a run.json is damaged or, unless ``partial``, missing.
    """
    origins: set[Origin] = set()
    for seed in experiment.seeds(run):
        path = run_folder(results, experiment.name, run, seed) / "run.json"
        if not partial or path.is_file():
            made_by = command("train", experiment.path, run, seed, results)
            record = read_json(path, made_by)
            try:
                made = record.get("sessions", [record])
                origins.update(origin_of(process["provenance"]) for process in made if "provenance" in process)
            except (LookupError, TypeError, AttributeError):
                raise unusable(path, "its sessions or their provenance are misshapen", made_by) from None
    return frozenset(origins)


def origin_of(provenance: dict[str, Any]) -> Origin:
    """What a process ran on, by its provenance in run.json."""
    git, versions = provenance.get("git"), provenance.get("packages", {})
    dirty = git is not None and git["dirty"]
    code = "an installed package" if git is None else f"commit {git['commit'][:7]}"
    return Origin(
        f"{code} with uncommitted changes" if dirty else code,
        dirty,
        tuple(f"{name} {versions.get(name) or '(not installed)'}" for name in PACKAGES),
    )


def describe_origins(origins: Iterable[Origin]) -> str | None:
    """One sentence where runs were made by different code, or by code that is in no commit; else None."""
    known = {*origins}
    kinds = [{origin.code for origin in known}, *({*kind} for kind in zip(*(o.versions for o in known), strict=True))]
    differing = [kind for kind in kinds if len(kind) > 1]
    if not differing:
        differing = [{origin.code} for origin in known if origin.dirty][:1]
    if not differing:
        return None
    return f"The runs were made by {'; '.join(enumerated(sorted(kind)) for kind in differing)}."
