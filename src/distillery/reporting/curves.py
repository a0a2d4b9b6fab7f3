"""Learning curves: what the trained runs of an experiment reported after each epoch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distillery.experiment import Experiment
from distillery.reporting.history import read_histories
from distillery.reporting.style import COLOURS, OTHERS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Teachers that train so many times as long as students get a panel and an axis of their own.
LONGER = 1.5


@dataclass(frozen=True)
class Curve:
    """One quantity of a run: epochs (E,), and its values over seeds (S, E)."""

    run: str
    teacher: str | None
    teaches: bool
    epochs: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over seeds (E,)."""
        mean: NDArray[np.float64] = self.values.mean(axis=0)
        return mean


@dataclass(frozen=True)
class Quantity:
    """What a figure shows, and how it is found in a history."""

    name: str
    label: str
    take: Callable[[dict[str, NDArray[np.float64]]], NDArray[np.float64]]
    logarithmic: bool


def _validation_top1(history: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """A run with a moving average keeps the better of both weights, so that is what its curve shows."""
    return np.fmax(history["val_top1"], history.get("ema_val_top1", history["val_top1"]))


QUANTITIES = (
    Quantity("validation_top1", "Validation top-1 (%)", _validation_top1, logarithmic=False),
    Quantity("training_loss", "Training loss", lambda history: history["train_loss"], logarithmic=True),
)


def learning_curves(experiment: Experiment, results: Path, *, partial: bool = False) -> dict[str, "Figure"]:
    """Draw the learning curves of an experiment's trained runs: figures by name.

    Raises:
        UserError: a history is damaged or, unless ``partial``, missing.
    """
    trained = [run for run, line in experiment.config.runs.items() if line.recipe is not None]
    histories = {run: read_histories(experiment, run, results, partial=partial) for run in trained}
    trained = [run for run in trained if histories[run]]
    figures = {}
    for quantity in QUANTITIES if trained else ():
        curves = [
            Curve(
                run,
                experiment.teacher(run),
                run in experiment.teachers,
                histories[run][0]["epoch"],
                np.stack([quantity.take(history) for history in histories[run]]),
            )
            for run in trained
        ]
        figures[quantity.name] = draw(curves, quantity)
    return figures


def draw(curves: list[Curve], quantity: Quantity) -> "Figure":
    """All runs in one picture as long as seven colours keep them apart; beyond that, a panel for each."""
    return _overlay(curves, quantity) if len(curves) <= len(COLOURS) else _panels(curves, quantity)


def _overlay(curves: list[Curve], quantity: Quantity) -> "Figure":
    from matplotlib.figure import Figure

    groups = _groups(curves)
    figure = Figure(figsize=(7.2 + 1.8 * (len(groups) - 1), 3.8), layout="constrained")
    # Colours and lines are explained once, beside the last panel.
    grid = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=list(range(1, len(groups) + 1)))
    colours = dict(zip((curve.run for curve in curves), COLOURS, strict=False))
    handles = []
    for axes, (title, group) in zip(grid.flat, groups.items(), strict=True):
        for curve in group:
            (line,) = axes.plot(curve.epochs, curve.mean, color=colours[curve.run], **_line(curve.teaches))
            line.set_label(curve.run)
            _band(axes, curve, colours[curve.run])
        axes.set_title(title, loc="left")
        axes.set_xlabel("Epoch")
        _finish(axes, group, curves, quantity)
    for curve in curves:
        handles += [line for axes in grid.flat for line in axes.lines if line.get_label() == curve.run]
    grid.flat[0].set_ylabel(quantity.label)
    # From top to bottom as the lines end; those that end in NaN last.
    order = sorted(range(len(curves)), key=lambda index: -np.nan_to_num(curves[index].mean[-1], nan=-np.inf))
    figure.legend(
        [handles[index] for index in order],
        [curves[index].run for index in order],
        loc="outside right upper",
        title=_legend_title(curves),
        alignment="left",
        handlelength=2.6,
    )
    return figure


def _long_teachers(curves: list[Curve]) -> bool:
    """Whether teachers train so much longer than students that these would be squeezed on the same axis."""
    ends: dict[bool, list[float]] = {True: [], False: []}
    for curve in curves:
        ends[curve.teaches].append(float(curve.epochs[-1]))
    return bool(ends[True] and ends[False]) and max(ends[True]) > LONGER * max(ends[False])


def _groups(curves: list[Curve]) -> dict[str, list[Curve]]:
    """What shares a panel, by the panel's title."""
    if not _long_teachers(curves):
        return {"": curves}
    return {
        "Teachers": [curve for curve in curves if curve.teaches],
        "Students": [curve for curve in curves if not curve.teaches],
    }


def _panels(curves: list[Curve], quantity: Quantity) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    # Four at least, so that the legend above them has room.
    columns = min(5, max(4, ceil(sqrt(len(curves)))))
    rows = ceil(len(curves) / columns)
    figure = Figure(figsize=(2.1 * columns, 1.7 * rows + 0.6), layout="constrained")
    apart = _long_teachers(curves)
    grid = figure.subplots(rows, columns, sharex=not apart, sharey=True, squeeze=False)
    by_run = {curve.run: curve for curve in curves}
    envelopes = {
        teaches: _envelope([curve for curve in curves if not apart or curve.teaches is teaches])
        for teaches in {curve.teaches for curve in curves}
    }
    for axes, curve in zip(grid.flat, curves, strict=False):
        axes.fill_between(*envelopes[curve.teaches], color=OTHERS, linewidth=0)
        if curve.teacher in by_run:
            teacher = by_run[curve.teacher]
            if apart:
                axes.axhline(teacher.mean[-1], color=COLOURS[1], **_line(teaches=True))
            else:
                axes.plot(teacher.epochs, teacher.mean, color=COLOURS[1], **_line(teaches=True))
        axes.plot(curve.epochs, curve.mean, color=COLOURS[0], **_line(teaches=False))
        _band(axes, curve, COLOURS[0])
        axes.set_title(curve.run, loc="left")
        _finish(axes, [other for other in curves if not apart or other.teaches is curve.teaches], curves, quantity)
    for axes in grid.flat[len(curves) :]:
        axes.set_visible(False)
    # Where the last row is not full, the panels above its gaps carry the numbers of the epochs.
    for axes in grid.flat[max(0, len(curves) - columns) : len(curves)]:
        axes.xaxis.set_tick_params(labelbottom=True)
    figure.supxlabel("Epoch", fontsize=9)
    figure.supylabel(quantity.label, fontsize=9)
    several = any(len(curve.values) > 1 for curve in curves)
    handles: list[Artist] = [Line2D([], [], color=COLOURS[0], **_line(teaches=False))]
    labels = ["the run (mean, and range over seeds)" if several else "the run"]
    if any(curve.teacher in by_run for curve in curves):
        handles.append(Line2D([], [], color=COLOURS[1], **_line(teaches=True)))
        labels.append("its teacher after its last epoch" if apart else "its teacher")
    handles.append(Patch(color=OTHERS, linewidth=0))
    labels.append("between the best and the worst run")
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=2.6)
    return figure


def _envelope(curves: list[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Epochs (E,), and the least and greatest mean of a run at each; all lines in every panel would swell the SVG."""
    means: dict[float, list[float]] = {}
    for curve in curves:
        for epoch, mean in zip(curve.epochs, curve.mean, strict=True):
            means.setdefault(float(epoch), []).append(float(mean))
    epochs = sorted(means)
    low, high = ([np.fmin.reduce(means[epoch]) for epoch in epochs], [np.fmax.reduce(means[epoch]) for epoch in epochs])
    return np.array(epochs), np.array(low), np.array(high)


def _line(teaches: bool) -> dict[str, Any]:
    return {"linestyle": (0, (4, 2)) if teaches else "-", "linewidth": 1.4}


def _band(axes: "Axes", curve: Curve, colour: str) -> None:
    if len(curve.values) > 1:
        low, high = curve.values.min(axis=0), curve.values.max(axis=0)
        axes.fill_between(curve.epochs, low, high, color=colour, alpha=0.18, linewidth=0)


def _legend_title(curves: list[Curve]) -> str | None:
    words = ["band: range over seeds"] if any(len(curve.values) > 1 for curve in curves) else []
    words += ["dashed: teaches"] if any(curve.teaches for curve in curves) else []
    return "\n".join(words) or None


def _finish(axes: "Axes", alike: list[Curve], curves: list[Curve], quantity: Quantity) -> None:
    """Scales and ticks: epochs as far as those of the panels that are alike, the same values in all."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True))
    first, last = (end(float(curve.epochs[place]) for curve in alike) for end, place in ((min, 0), (max, -1)))
    room = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - room, last + room)
    values = _finite(curve.values for curve in curves)
    if not values.size:
        return
    if not quantity.logarithmic:
        axes.set_ylim(_limits(curves))
    elif values.min() > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def _limits(curves: list[Curve]) -> tuple[float, float]:
    """Room for what comes after the first quarter of the epochs; the steep beginning would flatten all that differs."""
    late = _finite(curve.values[:, ceil(curve.values.shape[1] / 4) :] for curve in curves)
    whole = _finite(curve.values for curve in curves)
    low = float(late.min() if late.size else whole.min())
    high = float(whole.max())
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _finite(values: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    """All numbers among some arrays, in one row."""
    row: NDArray[np.float64] = np.concatenate([array.ravel() for array in values])
    finite: NDArray[np.float64] = row[np.isfinite(row)]
    return finite
