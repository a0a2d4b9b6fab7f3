"""One run looked at closely, from files alone: what it is and how it came to be, and what its jobs have said."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distillery.errors import UserError
from distillery.experiment.experiment import Experiment
from distillery.experiment.loading import load_experiment
from distillery.experiment.reading import nearest
from distillery.experiment.schema.columns import PROBES
from distillery.experiment.why import parse_target
from distillery.paths import lock_path, log_folder, profile_path, run_folder
from distillery.reporting.status import failure_of, last_lines, read_status
from distillery.results import SEAL, try_json

# What metrics.json, probes.json and profile.json hold besides what was measured.
BESIDES = ("seed", "epoch", "profiling", "evaluation", "probing")
FORM = "EXPERIMENT/RUN, EXPERIMENT/RUN/seedK, or a file of its results"


def find_run(target: str, config: Path, results: Path, *, rehearsal: bool = False) -> tuple[Experiment, str, list[int]]:
    """The experiment, the run and the seeds that a target names; all seeds where it names none.

    Raises:
        UserError: there is no such run or seed.
    """
    name, run, seed, _ = parse_target(target, config, results)
    experiment = load_experiment(config / f"{name}.yaml", rehearsal=rehearsal)
    if run is None:
        raise UserError(f"{target}: names no run; expected {FORM}; {nearest('', experiment.config.runs)}")
    seeds = list(experiment.seeds(run))
    experiment.spec(run, seed)
    return experiment, run, seeds if seed is None else [seed]


# --- what its jobs have said -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """What a job has said: the line that it failed with, if any, and its last lines."""

    path: Path
    written: float  # seconds since the epoch
    failure: str | None
    lines: tuple[str, ...]


def read_logs(experiment: Experiment, run: str, seeds: list[int], results: Path, lines: int) -> list[Log]:
    """The logs of a run's jobs, the oldest first."""
    paths: list[Path] = []
    for seed in seeds:
        folder = log_folder(results, experiment.name, run, seed)
        paths += [*folder.glob("*.log"), *folder.parent.glob("*.log")]
        # What Slurm, and Snakemake inside its job, said of failed ones.
        of_slurm = results.parent / ".snakemake" / "slurm_logs"
        paths += of_slurm.glob(f"rule_*/{experiment.name}_{run}_{seed}/*.log")
    found = []
    for path in dict.fromkeys(paths):
        said = last_lines(path)
        found.append(Log(path, path.stat().st_mtime, failure_of(said), tuple(said[-lines:] if lines else ())))
    return sorted(found, key=lambda log: log.written)


def describe_logs(logs: list[Log]) -> Iterator[str]:
    """Each log in a line, a failed one with its reason; then the end of the newest, or of the last one that failed."""
    for log in logs:
        yield f"{log.path} ({_ago(log.written)}){f': {log.failure}' if log.failure else ''}"
    if logs:
        shown = ([log for log in logs if log.failure] or logs)[-1]
        if shown.lines:
            yield f"\n{shown.path} ends with:"
            yield from shown.lines


def logs_data(logs: list[Log]) -> str:
    """The same as JSON, for programs."""
    content = [
        {"path": str(log.path), "written": log.written, "failure": log.failure, "lines": list(log.lines)}
        for log in logs
    ]
    return json.dumps({"logs": content}, indent=2, ensure_ascii=False)


def _ago(written: float) -> str:
    seconds = max(0, time.time() - written)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


# --- what it is ------------------------------------------------------------------------------------------------------


def read_run_facts(experiment: Experiment, run: str, seed: int, results: Path) -> dict[str, Any]:
    """All that is known of a run with one seed, as plain data; None stands for what is not there yet."""
    spec, folder = experiment.spec(run, seed), run_folder(results, experiment.name, run, seed)
    record = try_json(folder / "run.json")
    (line,) = [each for each in read_status([experiment], results) if (each.run, each.seed) == (run, seed)]
    facts: dict[str, Any] = {
        "experiment": experiment.name,
        "run": run,
        "seed": seed,
        "seeds": list(experiment.seeds(run)),
        "state": line.state,
        "detail": line.detail,
        "digest": spec.digest,
        "folder": str(folder),
        "logs": str(log_folder(results, experiment.name, run, seed)),
        "lock": str(lock_path(results, experiment.name, run, seed)),
        "teachers": [],
        "metrics": _without(try_json(folder / "metrics.json")),
        "probes": _without(try_json(folder / PROBES)),
        "profile": _without(try_json(profile_path(results, experiment.name, run))),
        "record": None,
        "spec": spec.ledger,
    }
    for teacher, met in zip(experiment.teachers_of(run), spec.by_teacher(), strict=True):
        of_teacher = run_folder(results, experiment.name, teacher, experiment.seeds(teacher)[0])
        facts["teachers"].append(
            {
                "run": teacher,
                "digest": met.teacher.digest if met.teacher else None,
                "folder": str(of_teacher),
                "top1": (try_json(of_teacher / "metrics.json") or {}).get("top1"),
            }
        )
    if record is not None:
        facts["record"] = {key: value for key, value in record.items() if key not in ("spec", "class_names", SEAL)}
    return facts


def _without(content: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if content is None else {key: value for key, value in content.items() if key != SEAL}


def describe_run(facts: dict[str, Any]) -> str:
    """The facts for people: what it is, what came out, by what it was made, and its spec with every default."""
    detail = f", {facts['detail']}" if facts["detail"] else ""
    lines = [
        f"{facts['experiment']}/{facts['run']}, seed {facts['seed']} of {', '.join(map(str, facts['seeds']))}",
        f"state    {facts['state']}{detail}",
        f"digest   {facts['digest']}",
        f"results  {facts['folder']}",
        f"logs     {facts['logs']}",
    ]
    for teacher in facts["teachers"]:
        top1 = "" if teacher["top1"] is None else f", top-1 {teacher['top1']:.2f}"
        lines.append(f"teacher  {teacher['run']} (digest {teacher['digest']}{top1}), {teacher['folder']}")
    for name in ("metrics", "probes", "profile"):
        if facts[name]:
            numbers = {
                key: value
                for key, value in facts[name].items()
                if isinstance(value, (int, float)) and key not in BESIDES
            }
            lines.append(f"{name:8} " + ", ".join(f"{key} {_number(value)}" for key, value in numbers.items()))
    lines += _describe_record(facts["record"] or {}, facts["digest"])
    text = yaml.safe_dump(facts["spec"], sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    return "\n".join([*lines, "", "spec, with every default:", *(f"  {line}" for line in text.splitlines())])


def _describe_record(record: dict[str, Any], digest: str) -> Iterator[str]:
    if not record:
        return
    if record.get("digest") != digest:
        yield f"made as  {record.get('digest')}, another configuration; distillery why says what differs"
    if record.get("epoch") is not None:
        yield f"weights  {record.get('weights_kind')}, of epoch {record['epoch']} ({record.get('selection')})"
    sessions = _mappings(record.get("sessions"))
    for place, session in enumerate(sessions, start=1):
        yield (
            f"session  {place} of {len(sessions)}: {session.get('seconds', '?')} s from epoch "
            f"{session.get('from_epoch')}, {session.get('processes')} x {session.get('device')}, "
            f"{session.get('precision')}, loader {session.get('loader')}; {_describe_origin(session)}"
        )
    if not sessions and record.get("provenance"):
        yield f"made by  {_describe_origin(record)}"
    for alarm in _mappings(record.get("alarms")):
        yield f"alarm    {alarm.get('line')}"


def _mappings(value: object) -> list[dict[str, Any]]:
    """Those of a record's list; damage is no error."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _describe_origin(made: dict[str, Any]) -> str:
    (origin,) = _mappings([made.get("provenance")]) or [{}]
    git = origin.get("git")
    commit = "no commit" if not git else f"commit {git['commit'][:10]}{' with changes' if git.get('dirty') else ''}"
    packages = origin.get("packages") or {}
    named = ", ".join(f"{name} {packages[name]}" for name in ("distillery", "torch", "timm") if packages.get(name))
    return f"{commit}, {named}, {origin.get('python')}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
