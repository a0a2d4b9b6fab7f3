"""A grid as a heat map: the colour of a cell is its first metric, the text its value and the published one."""

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.experiment import head_cells
from distillery.reporting.content import Content
from distillery.reporting.legend import NOT_RUN
from distillery.reporting.style import INK, OTHERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL_WIDTH, CELL_HEIGHT = 1.35, 0.5  # inches
CHARACTERS_PER_INCH = 13  # of a title
DARK = 0.55  # the share of the scale from which text is white


def draw_heat_map(content: Content) -> "Figure | None":
    """Draw a grid; None if nothing of it was measured.

    Networks that teach others in the grid stand in it without colour: the scale is for telling the students apart.
    """
    from matplotlib.figure import Figure

    grid, metric = content.table.grid, content.table.columns[0]
    assert grid is not None
    runs = list(grid.down.values())
    students = [[run is not None and run not in content.teachers.values() for run in row] for row in runs]
    values = np.array([[_value(content, run, metric) for run in row] for row in runs])
    if np.isnan(values).all():
        return None
    coloured = np.ma.masked_where(np.isnan(values) | ~np.array(students), values)
    figure = Figure(figsize=(2.6 + CELL_WIDTH * len(grid.across), 1.0 + CELL_HEIGHT * len(runs)), layout="constrained")
    axes = figure.subplots()
    better_down = COLUMNS[metric].better == "lower"
    image = axes.imshow(coloured, cmap="Blues_r" if better_down else "Blues", aspect="auto")
    for row, names in enumerate(runs):
        for column, run in enumerate(names):
            shade = _shade(image, values[row, column], better_down) if students[row][column] else 0.0
            _write(axes, content, (column, row), run, metric, "white" if shade > DARK else INK)
    axes.set_xticks(range(len(grid.across)), grid.across)
    axes.set_yticks(range(len(runs)), [_heading(heading) for heading in grid.down])
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    title = fill(content.title, int(CHARACTERS_PER_INCH * figure.get_figwidth()))
    figure.suptitle(title, x=0.02, ha="left", fontsize=9)
    if coloured.count():
        figure.colorbar(image, ax=axes, label=COLUMNS[metric].heading, shrink=0.9).outline.set_visible(False)
    return figure


def _heading(heading: str) -> str:
    """A row's heading in one line, without cells that only fill a column."""
    return ", ".join(cell for cell in head_cells(heading) if cell not in ("", "-", "–"))


def _value(content: Content, run: str | None, metric: str) -> float:
    summary = None if run is None else content.entries[run, metric].summary
    return np.nan if summary is None else summary.mean


def _shade(image, value: float, better_down: bool) -> float:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Where a value lies on the scale, from light to dark."""
    if np.isnan(value):
        return 0.0
    share = float(image.norm(value))
    return 1 - share if better_down else share


def _write(axes: "Axes", content: Content, place: tuple[int, int], run: str | None, metric: str, colour: str) -> None:
    from matplotlib.patches import Rectangle

    if run is None:
        return
    entry = content.entries[run, metric]
    text = NOT_RUN if entry.summary is None else COLUMNS[metric].show(entry.summary.mean)
    published = "" if entry.published is None else f"\npublished {entry.published.value:f}"
    if entry.summary is None:
        axes.add_patch(
            Rectangle((place[0] - 0.5, place[1] - 0.5), 1, 1, facecolor="none", edgecolor=OTHERS, hatch="///", lw=0)
        )
    axes.text(*place, text + published, ha="center", va="center", color=colour, fontsize=8, linespacing=1.3)
