"""What all benchmarks share: ways timed in turns, and rows that set ours beside a rival."""

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

Taken = Mapping[str, list[float]]  # seconds of each way, by round


@dataclass(frozen=True)
class Row:
    """Ours beside a rival's; a ratio above 1 says that ours is better. One that was not to be had says why."""

    part: str
    what: str
    ours: float | None = None
    rival: str = ""
    theirs: float | None = None
    unit: str = ""
    ratio: float | None = None
    goal: float | None = None  # of the ratio
    reason: str = ""

    @property
    def missed(self) -> bool:
        """Whether the goal was not reached."""
        return self.ratio is not None and self.goal is not None and self.ratio < self.goal


def beside(
    part: str, what: str, taken: Taken, ours: str, rival: str, goal: float | None = None, unit: str = "ms", per: int = 1
) -> Row:
    """A row of two ways: medians of ``per`` things in a round, and the median of the rounds' ratios."""
    values = [statistics.median(taken[way]) / per for way in (ours, rival)]
    own, theirs = [1 / value if unit == "images/s" else value if unit == "CPU s" else 1e3 * value for value in values]
    return Row(part, what, own, rival, theirs, unit, faster(taken, ours, rival), goal)


def faster(taken: Taken, ours: str, rival: str) -> float:
    """How many times faster a way is: the median of the rounds' ratios."""
    return statistics.median(theirs / own for own, theirs in zip(taken[ours], taken[rival], strict=True))


def within(part: str, what: str, ours: float, limit: float, unit: str) -> Row:
    """A row of what should take no more than a fixed limit."""
    return Row(part, what, ours, "the limit", limit, unit, limit / ours, 1.0)


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm: int = 1,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds of each way in each round; every round goes through all of them, and the first ``warm`` do not count."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + warm):
        for way, run in ways.items():
            began = clock()
            run()
            if turn >= warm:
                taken[way].append(clock() - began)
    return taken


def both_clocks(
    ways: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None
) -> tuple[Taken, Taken]:
    """As ``in_turns``: by the clock, and of processors with all child processes; ``before`` acts before each way."""
    clock: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            before()
            used, began = processor_seconds(), time.perf_counter()
            run()
            if turn:
                clock[way].append(time.perf_counter() - began)
                spent[way].append(processor_seconds() - used)
    return clock, spent


def processor_seconds() -> float:
    """Processor time of this process, all its threads, and its children, living or not."""
    pids = itertools.chain(*(path.read_text().split() for path in Path("/proc/self/task").glob("*/children")))
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(os.times()[:4]) + sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def show(title: str, clock: Taken, spent: Taken, images: int) -> None:
    """Print all ways, also those that no row has."""
    lines = [
        (way, 1e3 * statistics.median(clock[way]) / images, images / statistics.median(clock[way]), 1e3 * used / images)
        for way, used in ((way, statistics.median(values)) for way, values in spent.items())
    ]
    headers = (title, "ms an image", "images/s", "processor ms")
    print(f"\n{tabulate(lines, headers, tablefmt='github', floatfmt=('', '.2f', '.0f', '.2f'))}")


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument("--rounds", type=int, default=rounds, help="that count [%(default)s]")
    made.add_argument("--rows", type=Path, help="add the rows to this file, as JSON")
    return made


def write(rows: Iterable[Row], path: Path | None) -> None:
    """Print rows as a table, or add each to a file as soon as it is there."""
    if path is None:
        print(f"\n{table(rows)}", flush=True)
        return
    with path.open("a", buffering=1) as file:
        for row in rows:
            file.write(json.dumps(asdict(row)) + "\n")


def read(path: Path) -> list[Row]:
    """The rows of a file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: Iterable[Row]) -> str:
    """One line a row, what was missed marked."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    lines = []
    for row in rows:
        found = "not measured" if row.reason else "**missed**" if row.missed else "" if row.goal is None else "reached"
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        goal = "" if row.goal is None else f">= {row.goal:g}"
        what = f"{row.what}: {row.reason}" if row.reason else row.what
        lines.append([row.part, what, number(row.ours), row.rival, number(row.theirs), row.unit, ratio, goal, found])
    headers = ["part", "what", "ours", "beside", "theirs", "unit", "ratio", "goal", ""]
    alignment = ("left", "left", "right", "left", "right", "left", "right", "right", "left")
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True, colalign=alignment)


def machine() -> str:
    """The processor, its cores, the GPU if there is one, and torch."""
    import torch

    information = Path("/proc/cpuinfo")
    named = information.read_text().partition("model name")[2].partition("\n")[0] if information.exists() else ""
    processor = named.strip("\t: ") or platform.processor() or platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    return f"{processor}, {os.cpu_count()} cores{gpu}, torch {torch.__version__}"
