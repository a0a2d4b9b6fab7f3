"""What a run reports while it trains: a progress bar, TensorBoard, history.csv, and the trackers of the machine."""

import csv
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from distillery.atomic import write_text
from distillery.imports import without
from distillery.tracking import Tracked, Trackers
from distillery.training.checkpoint import TrainState

# What an epoch's time is spent on besides training steps; waiting for data is a part of these.
ASIDE = ("calibration", "validation", "saving")
STEPS_BETWEEN_POINTS = 50
SECONDS_BETWEEN_LINES = 60


class MetricLogger:
    """Writes a run's progress into its folder and to the terminal; the first rank's only.

    The bar covers the whole run, so its ETA is the run's. Where standard error is no terminal, it becomes one line an
    epoch, and one a minute. Timings go to TensorBoard, never into history.csv, which is the same bytes however often a
    run was stopped. Images a second are those of training steps: calibration batches (MGD's), validation and saving
    have seconds of their own.
    """

    def __init__(
        self, folder: Path, active: bool, tracked: Tracked | None = None, trackers: Iterable[str] = ()
    ) -> None:
        self.folder = folder
        self.active = active
        self.tracked = tracked
        self.trackers = Trackers(trackers, tracked, self.say) if active and tracked else Trackers((), None)
        self.images = 0
        self.seconds: dict[str, float] = {}
        self.drawn = self.said = 0.0
        self.rows: list[dict[str, float]] = []

    def begin(self, name: str, epochs: int, steps: int, train_state: TrainState) -> None:
        """Open the bar and TensorBoard where the run stands."""
        self.name, self.epochs = name, epochs
        self.rows = list(train_state.history)
        self._reset_clock()
        if not self.active:
            return
        self.first_step = self.done_steps = train_state.epoch * steps + train_state.step
        self.all_steps = epochs * steps
        self.interactive = sys.stderr.isatty()
        self.bar = tqdm(
            total=self.all_steps,
            initial=self.first_step,
            desc=name,
            disable=not self.interactive,
            mininterval=0.2,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
        )
        self.started = self.said = time.monotonic()
        self._open_tensorboard()
        self._write_history()

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time spent inside for a part of the epoch: ``data_wait`` or one of ``ASIDE``."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.took(part, time.perf_counter() - before)

    def took(self, part: str, seconds: float) -> None:
        """Count seconds for a part of the epoch, as ``timed`` does."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def step(self, images: int, means: Callable[[], dict[str, float]]) -> None:
        """Count one optimizer step; the epoch's means so far are asked for only when they are shown."""
        self.images += images
        if not self.active:
            return
        self.done_steps += 1
        if self.done_steps % STEPS_BETWEEN_POINTS == 0:
            points = {f"step/{name}": value for name, value in means().items()}
            self._on_tensorboard(lambda: self._add(points, self.done_steps))
            self.trackers.tell("log", points, self.done_steps)
        if self.interactive and time.monotonic() - self.drawn > 0.5:
            self.drawn = time.monotonic()
            self.bar.set_postfix_str(self._now(means()), refresh=False)
        elif not self.interactive and time.monotonic() - self.said > SECONDS_BETWEEN_LINES:
            self.said = time.monotonic()
            steps = f"step {self.done_steps}/{self.all_steps}"
            print(f"{self.name}: {steps}, {self._now(means())}", file=sys.stderr, flush=True)
        self.bar.update()

    def _now(self, means: dict[str, float]) -> str:
        epoch = f"epoch {len(self.rows) + 1}/{self.epochs}"
        top1 = f"top-1 {means['top1']:.1f}, " if "top1" in means else ""
        return f"{epoch}, loss {means['loss']:.3f}, {top1}{self._speed()}"

    def say(self, line: str) -> None:
        """Show a line above the bar."""
        if self.active:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def epoch(self, row: dict[str, float]) -> None:
        """Record a finished epoch."""
        if self.active:
            speeds = self._speeds()
            self._on_tensorboard(lambda: self._add(_points(row) | speeds, int(row["epoch"])))
        self.rows.append(row)
        if self.active:
            self.trackers.tell("log", {"epoch": row["epoch"], **_points(row), **speeds}, self.done_steps)
            self._write_history()
            if not self.interactive:
                self.said = time.monotonic()
                print(self._line(row), file=sys.stderr, flush=True)
        self._reset_clock()

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        if self.active:
            self._on_tensorboard(lambda: self.writer.flush())

    def end(self) -> None:
        """Close the bar and TensorBoard, and leave both records whole."""
        if self.active:
            self.bar.close()
            self._on_tensorboard(lambda: self.writer.close())
            self._write_history()

    def _on_tensorboard(self, act: Callable[[], None]) -> None:
        """Do something there; where its file is gone, begin again, for its writer's thread fails, sooner or later.

        A second Snakemake that was refused this run removes what it takes for its own failed job's outputs.
        """
        if not list((self.folder / "tensorboard").glob("events.*")):
            self._open_tensorboard()
        try:
            act()
        except FileNotFoundError:
            self._open_tensorboard()
            act()

    def _add(self, points: dict[str, float], at: int) -> None:
        for name, value in points.items():
            self.writer.add_scalar(name, value, at)

    def _open_tensorboard(self) -> None:
        """Begin TensorBoard's file again, with all epochs so far."""
        with without("boto3", "botocore"):
            from torch.utils.tensorboard import SummaryWriter

        threading.excepthook = _without_tensorboard
        tensorboard = self.folder / "tensorboard"
        tensorboard.mkdir(parents=True, exist_ok=True)
        for stale in tensorboard.glob("events.*"):
            stale.unlink()
        self.writer = SummaryWriter(str(tensorboard))
        self._write_settings()
        for row in self.rows:
            self._add(_points(row), int(row["epoch"]))

    def _reset_clock(self) -> None:
        self.images, self.drawn, self.seconds = 0, 0.0, {}
        self.clock = time.perf_counter()

    def _training_seconds(self) -> float:
        """The time of the epoch's steps, what they waited for data included."""
        aside = sum(self.seconds.get(part, 0.0) for part in ASIDE)
        return max(time.perf_counter() - self.clock - aside, 1e-9)

    def _wait_percent(self) -> float:
        return 100 * self.seconds.get("data_wait", 0.0) / self._training_seconds()

    def _speed(self) -> str:
        return f"{self.images / self._training_seconds():,.0f} img/s, data wait {self._wait_percent():.0f} %"

    def _write_settings(self) -> None:
        """Show TensorBoard's HParams what decides the run, with its curves, and not in a folder of their own."""
        from torch.utils.tensorboard.summary import hparams

        if self.tracked is not None:
            for summary in hparams(dict(self.tracked.settings), {"val/top1": 0.0}):  # type: ignore[no-untyped-call]
                self.writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]

    def _speeds(self) -> dict[str, float]:
        parts = {"training": self._training_seconds(), **self.seconds}
        return {
            "speed/images_per_second": self.images / self._training_seconds(),
            "speed/data_wait_percent": self._wait_percent(),
            **{f"seconds/{part}": seconds for part, seconds in parts.items()},
        }

    def _line(self, row: dict[str, float]) -> str:
        done = max(self.done_steps - self.first_step, 1)
        left = (time.monotonic() - self.started) / done * (self.all_steps - self.done_steps)
        train = f"{row['train_top1']:.2f} train, " if "train_top1" in row else ""
        ema = f" (EMA {row['ema_val_top1']:.2f})" if "ema_val_top1" in row else ""
        return (
            f"{self.name}: epoch {row['epoch']:.0f}/{self.epochs}, loss {row['train_loss']:.4f}, "
            f"top-1 {train}{row['val_top1']:.2f}{ema} val, {self._speed()}, "
            f"ETA {tqdm.format_interval(left)}"
        )

    def _write_history(self) -> None:
        write_text(self.folder / "history.csv", history_csv(self.rows))


def _points(row: dict[str, float]) -> dict[str, float]:
    """A row of history.csv as points of curves: ``val_top1`` is ``val/top1``."""
    parts = {name: name.rpartition("_") for name in row if name != "epoch"}
    return {f"{split or 'train'}/{metric}": row[name] for name, (split, _, metric) in parts.items()}


def _without_tensorboard(fault: threading.ExceptHookArgs) -> None:
    """Leave it to the next call of TensorBoard's writer to say why its thread has ended, which it does."""
    if not (type(fault.thread).__module__.startswith("tensorboard") and isinstance(fault.exc_value, OSError)):
        threading.__excepthook__(fault)


def history_csv(rows: list[dict[str, float]]) -> str:
    """history.csv: a line an epoch; numbers as short as they can be without losing a bit."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()
