"""Spread shards over processes, show how it goes, and leave no process running after an error."""

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal

from tqdm import tqdm

from distillery.cluster.signals import leave_interrupts_to_parent
from distillery.data.shards import ShardFacts, ShardTask, write_shard
from distillery.errors import UserError

# How long between two looks at the workers' counter, and between two lines where no bar can be drawn.
_LOOK_SECONDS = 0.1
_LINE_SECONDS = 5.0


class Progress:
    """A bar on a terminal; elsewhere a line every few seconds. Counts images, or bytes from ``done`` on."""

    def __init__(self, name: str, total: int, unit: Literal["img", "B"] = "img", done: int = 0) -> None:
        self._name, self._total, self._done, self._unit, self._first = name, total, done, unit, done
        self._began = self._said = time.monotonic()
        terminal = sys.stderr.isatty()
        self._bar = (
            tqdm(total=total, initial=done, desc=name, unit=f" {unit}", unit_scale=True, smoothing=0.1)
            if terminal
            else None
        )

    def add(self, number: int) -> None:
        """Count what is done."""
        self._done += number
        if self._bar is not None:
            self._bar.update(number)
        elif time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            rate = (self._done - self._first) / (self._said - self._began)
            line = (
                f"{self._done:,} of {self._total:,} images, {rate:,.0f} img/s"
                if self._unit == "img"
                else f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, {rate / 1e6:,.1f} MB/s"
            )
            print(f"{self._name}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def write_shards(tasks: Sequence[ShardTask], processes: int, progress: Progress) -> list[ShardFacts]:
    """Write all shards and return what was found, in the order of the tasks.

    With one process the work is done here. More are spawned, not forked: a fork of a process with threads may hang.

    Raises:
        UserError: a file cannot be read, or a worker was killed.
        OSError: a shard cannot be written.
    """
    if processes <= 1:
        return [write_shard(task, progress.add) for task in tasks]
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(processes, context, _start_worker, (counter, stop))
    try:
        futures = [executor.submit(_write_in_worker, task) for task in tasks]
        _watch(futures, counter, progress)
        return [future.result() for future in futures]
    except BrokenProcessPool:
        raise UserError(
            "a process that reads images was killed, perhaps for want of memory; try again with fewer --workers"
        ) from None
    finally:
        stop.set()
        executor.shutdown(cancel_futures=True)


def _watch(futures: list[Future[ShardFacts]], counter: Any, progress: Progress) -> None:  # noqa: ANN401
    shown = 0
    waiting: set[Future[ShardFacts]] = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        progress.add(counter.value - shown)
        shown = counter.value


# --- in the workers --------------------------------------------------------------------------------------------------

_report: Callable[[int], None]


class _Stopped(Exception):
    """The parent gave up; this shard is not needed."""


def _start_worker(counter: Any, stop: Any) -> None:  # noqa: ANN401
    leave_interrupts_to_parent()

    def report(images: int) -> None:
        if stop.is_set():
            raise _Stopped
        with counter.get_lock():
            counter.value += images

    global _report
    _report = report


def _write_in_worker(task: ShardTask) -> ShardFacts:
    return write_shard(task, _report)
