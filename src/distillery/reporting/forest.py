"""Gains over the baseline with their 95 % intervals: a forest plot, one run a line, the baseline at 0."""

from typing import TYPE_CHECKING

from distillery.experiment.schema.columns import COLUMNS
from distillery.experiment.schema.experiment import head_cells
from distillery.reporting.content import Content, Entry
from distillery.reporting.sheets import show_p
from distillery.reporting.statistics import Gain
from distillery.reporting.style import COLOURS, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.34  # inches
QUIET = "#8A8A8A"


def draw_forest(content: Content) -> "Figure | None":
    """Draw the gains of a table; None if no run was compared.

    A significant gain is a filled dot with bold words, a significant loss a filled square, and what is not significant
    is hollow and grey; a single seed has a dot without interval.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import blended_transform_factory

    (metric,) = content.table.paired
    entries = [content.entries[run, metric] for run in content.table.runs()]
    rows = [(entry, entry.gain) for entry in entries if entry.gain is not None]
    if not rows:
        return None
    figure = Figure(figsize=(7.2, 1.25 + ROW * len(rows)), layout="constrained")
    axes = figure.subplots()
    beside = blended_transform_factory(axes.transAxes, axes.transData)
    for place, (entry, gain) in enumerate(rows):
        _draw(axes, place, gain, good=entry.best)
        axes.text(
            1.02, place, _words(entry, gain), transform=beside, va="center", fontsize=8.5,
            color=INK if gain.shown else QUIET, fontweight="bold" if entry.best else "normal",
        )  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.text(0, -0.75, content.table.baseline or "", ha="center", va="bottom", fontsize=8.5, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_label(content, entry.run) for entry, _ in rows])
    for label, (entry, _) in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if entry.best else "normal")
        label.set_color(INK)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.06)
    axes.set_xlabel(f"{COLUMNS[metric].heading}, with 95 % interval")
    styles = dict.fromkeys(_style(gain, entry.best) for entry, gain in rows)
    handles = [
        Line2D([], [], color=colour, marker=marker, markerfacecolor=fill, linewidth=1.6, label=meaning)
        for colour, marker, fill, meaning in styles
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=2.2, fontsize=8.5)
    return figure


def _style(gain: Gain, good: bool) -> tuple[str, str, str, str]:
    """Colour, marker, its filling, and what they mean."""
    if good:
        return COLOURS[0], "o", COLOURS[0], "significant gain"
    if gain.shown:
        return COLOURS[1], "s", COLOURS[1], "significant loss"
    return QUIET, "o", "white", "not significant"


def _draw(axes: "Axes", place: int, gain: Gain, good: bool) -> None:
    colour, marker, fill, _ = _style(gain, good)
    if gain.low is not None and gain.high is not None:
        axes.plot([gain.low, gain.high], [place, place], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.plot([gain.mean], [place], marker=marker, markersize=6.5, color=colour, markerfacecolor=fill)


def _words(entry: Entry, gain: Gain) -> str:
    p = gain.p if gain.p_holm is None else gain.p_holm
    tested = "" if p is None else f", {show_p(p)}"
    return f"{COLUMNS[entry.metric].show_difference(gain.mean)}  (n = {gain.n}{tested})"


def _label(content: Content, run: str) -> str:
    """A row's label as the table prints it; the run's name where it has none."""
    cells = [cell for cell in head_cells(content.table.rows.get(run, "")) if cell not in ("", "-", "–")]
    return ", ".join(cells) or run
