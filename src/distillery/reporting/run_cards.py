"""Run cards: a page with a section a run, how it was made and what came of it; from records alone."""

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from distillery.atomic import write_text
from distillery.experiment import Experiment
from distillery.experiment.schema.columns import COLUMNS
from distillery.paths import run_folder
from distillery.reporting.history import read_history
from distillery.reporting.markup import escape_markdown
from distillery.reporting.origins import origin_of
from distillery.results import command, read_json

SHOWN = ("top1", "nll", "ece", "agreement")
MOST_EPOCHS = 10  # of a history that are shown


def cards_path(results: Path, experiment: str) -> Path:
    """The page of an experiment's run cards."""
    return results / "cards" / f"{experiment}.md"


def card_link(run: str, page: str = "") -> str:
    """A Markdown link to a run's card, from another page than theirs with its address: sites drop dots from anchors."""
    return f"[{escape_markdown(run)}]({page}#{re.sub(r'[^a-z0-9_-]', '', run.lower())})"


def write_cards(experiment: Experiment, results: Path) -> Path:
    """Write the cards of the runs that there are records of, and return the file.

    Raises:
        UserError: a record is damaged.
    """
    found = {run: read_records(experiment, run, results) for run in experiment.config.runs}
    cards = ["\n".join(_card(experiment, run, made, results)) for run, made in found.items() if made]
    top = (
        f"# {escape_markdown(experiment.name)}: run cards\n\n"
        "How each run was made and what came of it, from its records. The whole spec, its teacher's too, is in "
        "`run.json`.\n"
    )
    path = cards_path(results, experiment.name)
    write_text(path, "\n".join([top, *cards]))
    return path


def read_records(experiment: Experiment, run: str, results: Path) -> dict[int, dict[str, Any]]:
    """The run.json of each seed that has the present configuration."""
    found = {}
    for seed in sorted(experiment.seeds(run)):
        path = run_folder(results, experiment.name, run, seed) / "run.json"
        if path.is_file():
            record = read_json(path, command("train", experiment.path, run, seed, results), ("digest", "spec"))
            if record["digest"] == experiment.spec(run, seed).digest:
                found[seed] = record
    return found


def _card(experiment: Experiment, run: str, records: Mapping[int, dict[str, Any]], results: Path) -> Iterator[str]:
    record = next(iter(records.values()))
    spec = record["spec"]
    teachers = ", ".join(card_link(name) for name in experiment.teachers_of(run))
    made = "imported" if spec.get("recipe") is None else "trained"
    yield f"## {escape_markdown(run)}\n"
    yield f"`{spec['model']}`, {made}{f'; teacher {teachers}' if teachers else ''}.\n"
    shown = [COLUMNS[name].heading for name in SHOWN]
    yield f"| Seed | {' | '.join(shown)} | Seconds | Digest | Weights (SHA-256) | Records |"
    yield f"|---|{'--:|' * len(shown)}--:|---|---|---|"
    for seed, each in records.items():
        folder = run_folder(Path(".."), experiment.name, run, seed)
        metrics = read_json(run_folder(results, experiment.name, run, seed) / "metrics.json", "distillery evaluate")
        scores = [metrics.get(name) for name in SHOWN]
        cells = ["–" if score is None else COLUMNS[name].show(score) for name, score in zip(SHOWN, scores, strict=True)]
        files = [(name, (folder / name).as_posix()) for name in ("run.json", "metrics.json")]
        files += [("history.csv", (folder / "history.csv").as_posix())] if "history_sha256" in each else []
        links = ", ".join(f"[{name}]({path})" for name, path in files)
        weights = f"`{str(each.get('weights_sha256'))[:16]}`"
        cells.append(f"{seconds_of(each):,.0f}" if seconds_of(each) else "–")
        yield f"| {seed} | {' | '.join(cells)} | `{each['digest']}` | {weights} | {links} |"
    yield ""
    yield from _curves(experiment, run, records, results)
    for origin in sorted({_made_on(each) for each in records.values()}):
        yield f"Made by {origin}.\n"
    kept = {key: written(spec[key]) for key in ("weights", "objective", "recipe") if spec.get(key) is not None}
    text = yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)
    yield f"```yaml\n{text}```\n"


def _curves(experiment: Experiment, run: str, records: Mapping[int, dict[str, Any]], results: Path) -> Iterator[str]:
    """Validation top-1 after each epoch, or after some of many, a line a seed."""
    curves = {}
    for seed, record in records.items():
        if "history_sha256" in record:
            path = run_folder(results, experiment.name, run, seed) / "history.csv"
            history = read_history(path, command("train", experiment.path, run, seed, results))
            curves[seed] = dict(zip(history["epoch"].tolist(), history["val_top1"].tolist(), strict=True))
    if not curves:
        return
    epochs = sorted({epoch for curve in curves.values() for epoch in curve})
    step = -(-len(epochs) // MOST_EPOCHS)
    epochs = epochs[::-1][::step][::-1]
    yield f"| Top-1 (%) after epoch | {' | '.join(f'{epoch:g}' for epoch in epochs)} |"
    yield f"|---|{'--:|' * len(epochs)}"
    for seed, curve in curves.items():
        values = [curve.get(epoch) for epoch in epochs]
        cells = ["–" if value is None or not isfinite(value) else f"{value:.2f}" for value in values]
        yield f"| seed {seed} | {' | '.join(cells)} |"
    yield ""


def _made_on(record: dict[str, Any]) -> str:
    """Code, versions and devices of a run's sessions."""
    sessions = record.get("sessions") or [record]
    origins = [(origin_of(session["provenance"]), device_of(session)) for session in sessions]
    return "; ".join(dict.fromkeys(f"{made.code}, {', '.join(made.versions)}, on {device}" for made, device in origins))


def device_of(session: Mapping[str, Any]) -> str:
    """What a session of a run worked on: the GPU, or the processor."""
    device, origin = session.get("device", "cpu"), session.get("provenance", {})
    return str(origin.get("cpu") or device) if device == "cpu" else str(device)


def seconds_of(record: Mapping[str, Any]) -> float:
    """How long the sessions of a run took together."""
    return float(sum(session.get("seconds", 0) for session in record.get("sessions", ())))


def written(value: Any) -> Any:  # noqa: ANN401
    """Part of a spec as a page would have it: what is null or an integer of the mathematics' version is not written."""
    if isinstance(value, dict):
        return {key: written(part) for key, part in value.items() if part is not None and key != "numerics"}
    return [written(part) for part in value] if isinstance(value, list) else value
