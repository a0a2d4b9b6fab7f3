"""What each run of an experiment is doing: a board of runs and seeds, from files alone.

It asks no process and no scheduler, so that it works from another terminal, from another machine of a cluster, and
after everything has ended. Files that are missing, half written or damaged are states of a run, and never errors.
"""

import csv
import json
import math
import re
import time
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distillery.cluster.gpus import WAITING
from distillery.cluster.run_lock import DEATH_SECONDS, Owner, look
from distillery.errors import UserError
from distillery.experiment.experiment import Experiment
from distillery.experiment.loading import experiment_names
from distillery.experiment.why import images_digest, stale_for
from distillery.paths import lock_path, log_folder, records_list, regular, run_folder, work_folder
from distillery.results import read_json, try_json

# In the order of the counts; `trained` is a network that was not measured yet.
State = Literal["done", "trained", "running", "queued", "not begun", "stopped", "stale", "damaged", "failed"]
STATES: dict[State, str] = {
    "done": "green", "trained": "green", "running": "cyan", "queued": "blue", "not begun": "dim", "stopped": "yellow",
    "stale": "yellow", "damaged": "red", "failed": "bold red",
}  # fmt: skip
# What a low screen leaves out first.
_UNREMARKABLE: tuple[State, ...] = ("not begun", "done", "trained", "queued")

WATCH_SECONDS = 2.0
TAIL_BYTES = 2**16
# A line that ends a job, also where torchrun has put a rank before it.
_SAID = re.compile(r"(?:\[[^\]]*\]:?\s*)?distillery: (?!warning: )(.+)")
_SAVED = "saved; the same command continues from here"
_EPOCH = re.compile(r": epoch (\d+)/\d+,")
_ETA = re.compile(r": epoch (\d+)/\d+, .*ETA (?:(\d+):)?(\d+):(\d\d)$")


@dataclass(frozen=True)
class Line:
    """A run with one seed: how many epochs it has finished, its top-1 (%) after them, and what else there is to say."""

    experiment: str
    run: str
    seed: int
    state: State
    epoch: int | None = None
    epochs: int | None = None
    top1: float | None = None
    eta_seconds: float | None = None
    machine: str | None = None
    slurm_job: str | None = None
    device: str | None = None
    note: str = ""

    @property
    def detail(self) -> str:
        """All of it in words."""
        eta = None if self.eta_seconds is None else round(self.eta_seconds)
        parts = [
            None if self.epoch is None else f"epoch {self.epoch}/{self.epochs or '?'}",
            None if self.top1 is None else f"top-1 {self.top1:.2f}",
            None if eta is None else f"ETA {eta // 3600}:{eta // 60 % 60:02}:{eta % 60:02}",
            self.machine,
            self.device,
            None if self.slurm_job is None else f"Slurm job {self.slurm_job}",
            self.note,
        ]
        return ", ".join(part for part in parts if part)


def begun(config: Path, results: Path) -> list[Path]:
    """The experiment files whose runs have left anything behind.

    Raises:
        UserError: there are none.
    """
    places = (results, results / "work", results.parent / "logs")
    names = [name for name in experiment_names(config) if any(_exists(place / name) for place in places)]
    if not names:
        raise UserError(f"status: no experiment of {config} has begun; name a file, e.g. {config}/digits.yaml")
    return [config / f"{name}.yaml" for name in names]


def read_status(experiments: Iterable[Experiment], results: Path) -> list[Line]:
    """Look at every run and seed of some experiments once."""
    lines = []
    for experiment in experiments:
        images = images_digest(results, experiment.config.dataset)
        lines += [_look_at(experiment, run, seed, results, images) for run, seed in experiment.members()]
    return lines


def _look_at(experiment: Experiment, run: str, seed: int, results: Path, images: object) -> Line:
    member = experiment.name, run, seed
    folder = run_folder(results, *member)
    found = look(lock_path(results, *member))
    if found is not None and found[1] is None:
        return _running(experiment, run, seed, results, found[0])
    if refused := _refused(folder / "run.json"):
        return Line(*member, "damaged", note=refused)
    # Records that were kept in git have no weights beside them.
    weights = _exists(folder / "weights.safetensors") or _exists(records_list(results, experiment.name))
    if _exists(folder / "run.json") and weights:
        return _finished(experiment, run, seed, results, images)
    if _exists(folder / "run.json"):  # it is written last
        return Line(*member, "damaged", note=f"{folder / 'weights.safetensors'}: missing")
    recipe = experiment.recipes.get(run)
    log = log_folder(results, *member) / ("import.log" if recipe is None else "train.log")
    said, written = last_lines(log), _date(log)
    queue = _queued(folder / "weights.safetensors", results)
    if queue is not None and queue[0] > written:
        return Line(*member, "queued", slurm_job=queue[1])
    end = failure_of(said)
    epoch = next((int(match[1]) for line in reversed(said) if (match := _EPOCH.search(line))), None)
    epochs = None if epoch is None or recipe is None else recipe.total_epochs
    if end is not None:
        return Line(*member, "stopped" if end.endswith(_SAVED) else "failed", epoch, epochs, note=end)
    if found is not None:
        owner, silent = found
        what = f"its process ended without a word, or its machine ({silent:.0f} seconds ago)"
        where = owner.machine, owner.slurm_job, owner.device
        return Line(*member, "failed", epoch, epochs, None, None, *where, note=what)
    if time.time() - written < DEATH_SECONDS:
        # A job that waits for a GPU touches its log.
        waits = bool(said) and said[-1].startswith(WAITING)
        return Line(*member, "queued", note=said[-1]) if waits else Line(*member, "running", note="starting")
    if written:
        return Line(*member, "failed", epoch, epochs, note=f"ended without a word after: {said[-1] if said else '-'}")
    if any(_exists(path) for path in _glob(work_folder(results, *member), "*/checkpoint.pt")):
        return Line(*member, "stopped", note=_SAVED)
    return Line(*member, "not begun")


def _running(experiment: Experiment, run: str, seed: int, results: Path, owner: Owner) -> Line:
    member = experiment.name, run, seed
    recipe, history = experiment.recipes.get(run), run_folder(results, *member) / "history.csv"
    where, epochs = (owner.machine, owner.slurm_job, owner.device), None if recipe is None else recipe.total_epochs
    # What is older than the record of a finished run is its own, and not yet of the one that is being made.
    if not _date(history) or _date(history) <= _date(history.with_name("run.json")):
        return Line(*member, "running", None, epochs, None, None, *where, "starting")
    epoch, top1 = _last_epoch(history)
    log, eta = log_folder(results, *member) / "train.log", None
    found = next((match for line in reversed(last_lines(log)) if (match := _ETA.search(line))), None)
    # Each epoch's line says how long the rest takes from then on; a log may also be that of a session before.
    if found is not None and int(found[1]) == epoch and _date(log) >= _date(history) - 1:
        hours, minutes, seconds = (int(part or 0) for part in found.groups()[1:])
        eta = max(0.0, 3600 * hours + 60 * minutes + seconds - (time.time() - _date(history)))
    return Line(*member, "running", epoch, epochs, top1, eta, *where)


def _finished(experiment: Experiment, run: str, seed: int, results: Path, images: object) -> Line:
    member = experiment.name, run, seed
    folder = run_folder(results, *member)
    record, metrics = try_json(folder / "run.json"), try_json(folder / "metrics.json")
    if record is None:
        return Line(*member, "damaged", note=_fault(folder / "run.json"))
    reasons = stale_for(experiment, run, seed, results, record, images)
    top1 = _number((metrics or {}).get("top1"))
    if reasons:
        more = f" (and {len(reasons) - 1} more: distillery why {experiment.name}/{run})" if len(reasons) > 1 else ""
        return Line(*member, "stale", top1=top1, note=_clean(reasons[0]) + more)
    if metrics is not None:
        return Line(*member, "done", top1=top1)
    if _exists(folder / "metrics.json"):
        return Line(*member, "damaged", note=_fault(folder / "metrics.json"))
    log = log_folder(results, *member) / "evaluate.log"
    end = failure_of(last_lines(log))
    if end is not None and _date(log) > _date(folder / "run.json"):
        return Line(*member, "failed", note=f"not measured: {end}")
    return Line(*member, "trained", note="not measured yet")


def _last_epoch(history: Path) -> tuple[int, float | None]:
    """How many epochs history.csv has, and the validation top-1 of the last one."""
    epoch, top1 = 0, None
    try:
        for row in csv.DictReader(regular(history).read_text(encoding="utf-8", errors="replace").splitlines()):
            found = _number(row.get("epoch"))
            if found is not None:
                epoch, top1 = int(found), _number(row.get("val_top1"))
    except (OSError, csv.Error):
        pass
    return epoch, top1


def _queued(output: Path, results: Path) -> tuple[float, str | None] | None:
    """When Snakemake has given out the job that makes a file, and as which job of Slurm; None if it has not.

    While a workflow runs, it keeps a marker for each file that is being made, which a job that waits has too.
    """
    state = results.parent / ".snakemake"
    if not any(True for _ in _glob(state / "locks", "*")):
        return None
    name = urlsafe_b64encode(str(output.relative_to(results.parent)).encode()).decode()
    if len(name) > 255:  # Snakemake breaks such names up
        return None
    marker = state / "incomplete" / name
    job = (try_json(marker) or {}).get("external_jobid")
    return (_date(marker), None if job is None else _clean(str(job))) if _date(marker) else None


def last_lines(log: Path) -> list[str]:
    """The last lines of a log that say something; of a bar that was drawn over and over, what it showed last."""
    try:
        with regular(log).open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for each in text.split("\n") if (line := _clean(each.rstrip("\r").rpartition("\r")[2]))]


def failure_of(said: Iterable[str]) -> str | None:
    """The line with which a job ended, of all that it said, wherever that stands; None if it has none."""
    ends = [match[1] for line in said if (match := _SAID.fullmatch(line))]
    return ends[-1] if ends else None


def _clean(text: str) -> str:
    """Text without what moves a terminal's cursor or colours it."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


def _fault(path: Path) -> str:
    try:
        read_json(path, "the workflow")
    except UserError as error:
        return _clean(str(error))
    return f"{path}: changed while it was read"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _exists(path: Path) -> bool:
    return _date(path) > 0


def _refused(path: Path) -> str:
    """Why nobody can say whether a file is there, as in a folder of another user; "" where it can be said."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _date(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _glob(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


# --- showing it ------------------------------------------------------------------------------------------------------


def as_data(lines: Sequence[Line]) -> str:
    """The board as JSON, for programs."""
    return json.dumps({"runs": [asdict(line) for line in lines], "counts": _counts(lines)}, indent=2, allow_nan=False)


def board(lines: Sequence[Line]) -> str:
    """The board as text, with the counts at its end."""
    parts = [text for _, text in _rows(lines)]
    return "\n".join([*parts, "", _summary(lines)])


def watch_board(read: Callable[[], list[Line]]) -> None:
    """Show the board on a terminal, again and again, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                lines = read()
                rows = _fitting(_rows(lines), console.height - 3)
                text = Text(no_wrap=True, overflow="ellipsis")
                for state, row in rows:
                    text.append(f"{row}\n", style="bold" if state is None else STATES[state])
                text.append(f"\n{_summary(lines)}; Ctrl-C ends this view alone")
                live.update(text, refresh=True)
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        pass


def _rows(lines: Sequence[Line]) -> list[tuple[State | None, str]]:
    """The lines as text under the names of their experiments, which have no state."""
    widths = [max((len(str(getattr(line, key))) for line in lines), default=0) for key in ("run", "seed", "state")]
    rows: list[tuple[State | None, str]] = []
    for place, line in enumerate(lines):
        if place == 0 or lines[place - 1].experiment != line.experiment:
            rows.append((None, line.experiment))
        run, seed, state = (
            text.ljust(width) for text, width in zip((line.run, str(line.seed), line.state), widths, strict=True)
        )
        rows.append((line.state, f"  {run}  seed {seed}  {state}  {line.detail}".rstrip()))
    return rows


def _fitting(rows: list[tuple[State | None, str]], height: int) -> list[tuple[State | None, str]]:
    """The rows that a screen has room for: those in which nothing happens are left out first, the last ones before."""
    for dull in _UNREMARKABLE:
        spare = max(0, len(rows) - height)
        places = [place for place, (state, _) in enumerate(rows) if state == dull]
        dropped = set(places[len(places) - min(spare, len(places)) :])
        rows = [row for place, row in enumerate(rows) if place not in dropped]
    return rows


def _counts(lines: Iterable[Line]) -> dict[str, int]:
    counted = Counter(line.state for line in lines)
    return {state: counted[state] for state in STATES if counted[state]}


def _summary(lines: Sequence[Line]) -> str:
    return f"{len(lines)} in all: {', '.join(f'{count} {state}' for state, count in _counts(lines).items()) or 'none'}"
