"""Experiment trackers that watch: W&B, MLflow, trackio. The machine chooses them, and no digest knows of them.

Each is served by a thread of its own, so that one that is slow, fails or hangs costs a line and never a training.
TensorBoard's files are always written, by training.metric_logger. Whether anything leaves the machine, a tracker's own
settings say (WANDB_MODE=offline, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID).
"""

import fcntl
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from distillery.errors import UserError

# What chooses trackers where no option does, as `wandb,mlflow`.
VARIABLE = "DISTILLERY_TRACK"
# How long a run waits for its trackers when all else is done.
END_SECONDS = 60.0
# MLflow takes no more at once.
LARGEST_BATCH = 100

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Tracked:
    """What trackers are told of a run: where it belongs, what it is called, and what decides it."""

    project: str  # the experiment
    group: str  # the run, whose seeds stand together
    name: str
    key: str  # the same when the run is continued
    settings: Mapping[str, Scalar]
    tags: tuple[str, ...] = ()


class Tracker(Protocol):
    """One tracker's view of one run."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Take points of curves."""

    def note(self, facts: Mapping[str, Scalar]) -> None:
        """Take what came out at the end."""

    def picture(self, name: str, path: Path) -> None:
        """Take a PNG."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], page: Path) -> None:
        """Take a table, and the page that shows it."""

    def end(self, whole: bool) -> None:
        """Close; ``whole`` says that the run came to its end."""


def chosen_trackers(given: str) -> tuple[str, ...]:
    """The trackers that an option names, separated by commas; by default those of the environment.

    Raises:
        UserError: one is not known.
    """
    where, text = ("--track", given) if given else (VARIABLE, os.environ.get(VARIABLE, ""))
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in (*TRACKERS, "tensorboard"):
            raise UserError(f"{where}: no tracker {name!r}; valid: {', '.join(TRACKERS)}, tensorboard")
    return tuple(dict.fromkeys(name for name in names if name != "tensorboard"))


class Trackers:
    """All trackers of a run; none of them can fail, for its caller."""

    def __init__(self, names: Iterable[str], tracked: Tracked | None, say: Callable[[str], None] | None = None) -> None:
        self._say = say or (lambda line: print(line, file=sys.stderr, flush=True))
        self._served = [_Served(name, tracked, self._say) for name in names] if tracked else []

    def tell(self, what: str, *arguments: object) -> None:
        """Call a method of every tracker, soon."""
        for served in self._served:
            served.calls.put((what, arguments))

    def end(self, whole: bool = True) -> None:
        """Close all, and wait for them a while; called twice, the first time counts."""
        self.tell("end", whole)
        for served in self._served:
            served.join(END_SECONDS)
            if served.is_alive():
                self._say(f"warning: track {served.name}: does not answer; its last points may be missing")
        self._served = []


class _Served(threading.Thread):
    """One tracker, and what it is told."""

    def __init__(self, name: str, tracked: Tracked, say: Callable[[str], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.tracked, self.say = tracked, say
        self.calls: SimpleQueue[tuple[str, tuple[Any, ...]]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        """Serve until the end, or until it fails."""
        try:
            tracker = TRACKERS[self.name](self.tracked)
            what = ""
            while what != "end":
                what, arguments = self.calls.get()
                getattr(tracker, what)(*arguments)
        except ModuleNotFoundError as error:
            self.say(f"warning: track {self.name}: {error}; pip install 'distillery[trackers]'; going on without it")
        except (Exception, SystemExit) as error:  # whatever a library does
            reason = " ".join(str(error).split())[:200]
            self.say(f"warning: track {self.name}: {type(error).__name__}: {reason}; going on without it")


# --- the trackers ----------------------------------------------------------------------------------------------------


class _Wandb:
    def __init__(self, tracked: Tracked) -> None:
        import wandb

        self.library = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", tracked.project),
            group=tracked.group,
            name=tracked.name,
            id=tracked.key,
            resume="allow",
            config=dict(tracked.settings),
            tags=list(tracked.tags),
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True, save_code=False),
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def note(self, facts: Mapping[str, Scalar]) -> None:
        self.run.summary.update(dict(facts))

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.library.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], page: Path) -> None:
        self.run.log({name: self.library.Table(columns=list(columns), data=[list(row) for row in rows])})
        self.run.log({f"{name}/page": self.library.Html(page.read_text(encoding="utf-8"), inject=False)})

    def end(self, whole: bool) -> None:
        self.run.finish(exit_code=0 if whole else 1)


class _MLflow:
    def __init__(self, tracked: Tracked) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self.metric, self.param = Metric, Param
        # Trap: the first ones to use a database of MLflow's own, all at once, would each try to make it.
        with ExitStack() as stack:
            if "MLFLOW_TRACKING_URI" not in os.environ:
                fcntl.flock(stack.enter_context(Path("mlflow.lock").open("w")), fcntl.LOCK_EX)
            self.client = MlflowClient()
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", tracked.project)
            experiment = self.client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self.client.create_experiment(project)
        found = self.client.search_runs([number], f"tags.key = '{tracked.key}'", max_results=1)
        tags = {"key": tracked.key, "group": tracked.group, **dict.fromkeys(tracked.tags, "true")}
        run = found[0] if found else self.client.create_run(number, run_name=tracked.name, tags=tags)
        self.run = run.info.run_id
        self.client.update_run(self.run, "RUNNING")
        params = [self.param(key, str(value)[:500]) for key, value in tracked.settings.items()]
        for first in range(0, 0 if found else len(params), LARGEST_BATCH):
            self.client.log_batch(self.run, params=params[first : first + LARGEST_BATCH])

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self.client.log_batch(self.run, metrics=[self.metric(key, value, now, step) for key, value in scalars.items()])

    def note(self, facts: Mapping[str, Scalar]) -> None:
        for key, value in facts.items():
            if isinstance(value, str):
                self.client.set_tag(self.run, key, value[:500])
            else:
                self.client.log_metric(self.run, key, float(value))

    def picture(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.run, str(path), "pictures")

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], page: Path) -> None:
        by_column = {column: [row[place] for row in rows] for place, column in enumerate(columns)}
        self.client.log_table(self.run, by_column, f"{name}.json")
        self.client.log_artifact(self.run, str(page))

    def end(self, whole: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if whole else "FAILED")


class _Trackio:
    def __init__(self, tracked: Tracked) -> None:
        import trackio

        self.library = trackio
        self.run = trackio.init(
            project=tracked.project,
            name=tracked.key,  # the name is what it continues by
            group=tracked.group,
            config=dict(tracked.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.run.log(dict(scalars), step=step)

    def note(self, facts: Mapping[str, Scalar]) -> None:
        self.run.log(dict(facts))

    def picture(self, name: str, path: Path) -> None:
        self.run.log({name: self.library.Image(str(path))})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]], page: Path) -> None:
        self.run.log({name: self.library.Table(columns=list(columns), data=[list(row) for row in rows])})

    def end(self, whole: bool) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[Tracked], Tracker]] = {"wandb": _Wandb, "mlflow": _MLflow, "trackio": _Trackio}
