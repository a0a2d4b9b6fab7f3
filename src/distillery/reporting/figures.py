"""The figures of an experiment, as SVG and PNG with the same bytes every time.

Learning curves of the trained runs, the gains of tables that name a baseline, and what tables ask for by `figure`: a
heat map of a grid, or accuracy against images a second with the Pareto front.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distillery.experiment import Experiment
from distillery.paths import figure_folder
from distillery.reporting.content import Content, gather, read_ledger
from distillery.reporting.curves import learning_curves
from distillery.reporting.forest import draw_forest
from distillery.reporting.heat_map import draw_heat_map
from distillery.reporting.measurements import read_measurements, tables_with_figures
from distillery.reporting.pareto import draw_pareto
from distillery.reporting.style import house_style, save
from distillery.results import remove_others

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_experiment(experiment: Experiment, results: Path, published: Path, *, partial: bool = False) -> list[Path]:
    """Draw the figures of an experiment, and return the files.

    The ledger ``published`` need not exist. ``partial`` draws what there is instead of refusing gaps.

    Raises:
        UserError: a history or a measurement is missing or damaged. Nothing is written then.
    """
    with house_style():
        figures = learning_curves(experiment, results, partial=partial)
        figures |= table_figures(experiment, results, published, partial=partial)
        folder = figure_folder(results, experiment.name)
        folder.mkdir(parents=True, exist_ok=True)
        files = [file for name, figure in figures.items() for file in save(figure, folder, name)]
    remove_others(folder, (".svg", ".png"), keep=files)
    return files


def table_figures(
    experiment: Experiment, results: Path, published: Path, *, partial: bool = False
) -> dict[str, "Figure"]:
    """Draw what goes with the tables of an experiment: figures by name.

    Raises:
        UserError: a measurement is missing or damaged.
    """
    illustrated = tables_with_figures(experiment)
    ledger = read_ledger(experiment, published)
    runs = read_measurements(experiment, results, illustrated, partial=partial)
    figures: dict[str, Figure] = {}
    for name in illustrated:
        figures |= _draw(gather(experiment, name, experiment.config.tables[name], runs, ledger))
    return figures


def _draw(content: Content) -> dict[str, "Figure"]:
    """The figures of a table, under its name and theirs; none as long as there is nothing to see."""
    wanted: list[str] = [] if content.table.figure is None else [content.table.figure]
    wanted += ["gains"] if content.table.baseline is not None else []
    draw = {"heat_map": draw_heat_map, "pareto": draw_pareto, "gains": draw_forest}
    figures = {f"{content.name}_{name}": draw[name](content) for name in wanted}
    return {name: figure for name, figure in figures.items() if figure is not None}
