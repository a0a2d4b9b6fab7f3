"""Spread shards over processes, show how it goes, and leave no process running after an error."""

import multiprocessing
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
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

    This process is one of the ``processes``: it works while the others start, which takes as long as some thousand
    small images. They are spawned, not forked: a fork of a process with threads may hang.

    Raises:
        UserError: a file cannot be read, or a worker was killed.
        OSError: a shard cannot be written.
    """
    if processes <= 1:
        return [write_shard(task, progress.add) for task in tasks]
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    executor = ProcessPoolExecutor(processes - 1, context, _start_worker, (counter, stop))
    waiting = deque(enumerate(tasks))
    found: dict[int, ShardFacts] = {}
    given: dict[int, Future[ShardFacts]] = {}
    started: list[Future[None]] = []
    giving = threading.Lock()
    shown = 0

    def show() -> None:
        nonlocal shown
        done = counter.value
        progress.add(done - shown)
        shown = done

    def give(done: Future[Any]) -> None:
        """Hand a task to a worker that has started or done its last one; called when it has."""
        if done.cancelled() or done.exception():
            return
        future: Future[ShardFacts] | None = None
        # There may be no task left, and no pool any more.
        with giving, suppress(IndexError, RuntimeError):
            number, task = waiting.popleft()
            given[number] = future = executor.submit(_write_in_worker, task)
        if future is not None:
            future.add_done_callback(give)

    def report(images: int) -> None:
        with giving:
            futures: list[Future[Any]] = [*started, *given.values()]
        for future in futures:
            if future.done():
                future.result()
        with counter.get_lock():
            counter.value += images
        show()

    try:
        for _ in range(processes - 1):
            started.append(executor.submit(_start_working))
            started[-1].add_done_callback(give)
        while waiting:
            with suppress(IndexError):  # a worker may have taken the last
                number, task = waiting.popleft()
                found[number] = write_shard(task, report)
        with giving:
            others = list(given.values())
        _watch(others, show)
        return [found[number] if number in found else given[number].result() for number in range(len(tasks))]
    except BrokenProcessPool:
        raise UserError(
            "a process that reads images was killed, perhaps for want of memory; try again with fewer --workers"
        ) from None
    finally:
        waiting.clear()
        stop.set()
        executor.shutdown(cancel_futures=True)


def _watch(futures: list[Future[ShardFacts]], show: Callable[[], None]) -> None:
    waiting: set[Future[ShardFacts]] = set(futures)
    while waiting:
        done, waiting = wait(waiting, timeout=_LOOK_SECONDS, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()
        show()


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


def _start_working() -> None:
    """Nothing: that it was done says that the process has started."""


def _write_in_worker(task: ShardTask) -> ShardFacts:
    return write_shard(task, _report)
