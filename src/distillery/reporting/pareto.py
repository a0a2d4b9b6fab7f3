"""Accuracy against images a second, and the Pareto front: the networks that no other beats in both.

Published speeds were taken by other means on other machines, so they are drawn in panels of their own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.experiment import head_cells
from distillery.reporting.content import Content
from distillery.reporting.style import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 5.2, 3.9  # inches
# Where a name may stand beside its point, best first: offset in points, and alignment.
PLACES = (
    ((6, 0), "left", "center"),
    ((-6, 0), "right", "center"),
    ((0, 6), "center", "bottom"),
    ((0, -6), "center", "top"),
    ((5, 8), "left", "bottom"),
    ((5, -8), "left", "top"),
    ((-5, 8), "right", "bottom"),
    ((-5, -8), "right", "top"),
)


@dataclass(frozen=True)
class Point:
    """A network: its name, images a second, and accuracy in percent."""

    name: str
    speed: float
    accuracy: float


def draw_pareto(content: Content) -> "Figure | None":
    """Draw a panel for each column of images a second, measured and as published; None if there are no points."""
    from matplotlib.figure import Figure

    panels = list(_panels(content))
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (title, points) in zip(grid.flat, panels, strict=False):
        axes.set_title(title, loc="left")
        _draw(axes, points)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.draw_without_rendering()
    for axes, (_, points) in zip(grid.flat, panels, strict=False):
        _name(axes, points)
    return figure


def pareto_front(points: list[Point]) -> list[Point]:
    """The points that none other beats in speed and accuracy, from the slowest to the fastest."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (-point.speed, -point.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front[::-1]


def _panels(content: Content) -> Iterator[tuple[str, list[Point]]]:
    (accuracy,) = content.table.columns_along("accuracy")
    speeds = content.table.columns_along("speed")
    share_wrong = COLUMNS[accuracy].better == "lower"
    for source in ("measured", "published"):
        for speed in speeds:
            points = [
                Point(_label(content, run), found[speed], 100 - found[accuracy] if share_wrong else found[accuracy])
                for run in content.table.rows
                if (found := _numbers(content, run, source)).keys() >= {speed, accuracy}
            ]
            if points:
                yield f"{COLUMNS[speed].heading}, {'here' if source == 'measured' else 'as published'}", points


def _numbers(content: Content, run: str, source: str) -> dict[str, float]:
    """What is known of a run from one source, by metric."""
    found: dict[str, float] = {}
    for metric in content.table.columns:
        entry = content.entries[run, metric]
        if source == "measured" and entry.summary is not None:
            found[metric] = entry.summary.mean
        elif source == "published" and entry.published is not None:
            found[metric] = float(entry.published.value)
    return found


def _label(content: Content, run: str) -> str:
    return ", ".join(filter(None, head_cells(content.table.rows[run]))) or run


def _draw(axes: "Axes", points: list[Point]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    front = pareto_front(points)
    others = [point for point in points if point not in front]
    axes.plot([p.speed for p in front], [p.accuracy for p in front], "-o", color=COLOURS[1], lw=1.2, ms=5, zorder=3)
    axes.plot([p.speed for p in others], [p.accuracy for p in others], "o", color=COLOURS[0], ms=4, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Images a second")
    axes.set_ylabel("Top-1 (%)")
    # Room for the names.
    axes.margins(x=0.18, y=0.1)


def _name(axes: "Axes", points: list[Point]) -> None:
    """Write each network's name where it covers nothing and stays inside, if there is such a place."""
    from matplotlib.transforms import Bbox

    pixels = axes.transData.transform([(point.speed, point.accuracy) for point in points])
    front = axes.transData.transform([(point.speed, point.accuracy) for point in pareto_front(points)])
    # A point hides no name of its own; the line does, so it begins and ends a little off the points.
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in pixels]
    line = [
        Bbox.from_bounds(x, y, 1, 1)
        for start, end in pairwise(front)
        for x, y in start + np.linspace(0.1, 0.9, 25)[:, None] * (end - start)
    ]
    inside = axes.get_window_extent()
    for index, point in sorted(enumerate(points), key=lambda pair: -pair[1].accuracy):
        best = None
        for offset, horizontal, vertical in PLACES:
            text = axes.annotate(
                point.name,
                (point.speed, point.accuracy),
                xytext=offset,
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=7,
                color=INK,
                in_layout=False,
            )
            box = text.get_window_extent()
            covered = sum(box.overlaps(other) for position, other in enumerate(taken) if position != index)
            covered += any(box.overlaps(other) for other in line)
            covered += 3 * (not inside.contains(box.x0, box.y0) or not inside.contains(box.x1, box.y1))
            if best is not None and best[0] <= covered:
                text.remove()
                continue
            if best is not None:
                best[1].remove()
            best = covered, text, box
            if covered == 0:
                break
        assert best is not None
        taken.append(best[2])
