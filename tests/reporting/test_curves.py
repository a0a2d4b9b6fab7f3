"""Learning curves: what the lines show, and the same bytes every time."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from distillery.errors import UserError
from distillery.paths import figure_folder
from distillery.reporting.curves import QUANTITIES, Curve, draw
from distillery.reporting.figures import plot_experiment
from distillery.reporting.style import COLOURS

TOP1, LOSS = QUANTITIES
RUN = "    {}: {{model: cifar_resnet8, recipe: toy, teacher: big, objective: {{ce: {{}}, kd: {{}}}}}}\n"


def write_histories(desk, epochs=6):
    for order, run in enumerate(desk.experiment.config.runs):
        for seed in desk.experiment.seeds(run):
            rows = [
                {
                    "epoch": epoch,
                    "train_loss": 2.0 / epoch + 0.01 * seed,
                    "val_top1": 95.0 - 60.0 / epoch - order + 0.2 * seed,
                }
                for epoch in range(1, epochs + 1)
            ]
            desk.write_history(run, seed, rows)


def curve(run, values, teacher=None, teaches=False):
    values = np.atleast_2d(np.array(values, dtype=float))
    return Curve(run, teacher, teaches, np.arange(1.0, values.shape[1] + 1), values)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_an_experiment_gets_both_figures_in_both_formats(desk):
    write_histories(desk)
    files = plot_experiment(desk.experiment, desk.results, desk.ledger)
    folder = figure_folder(desk.results, "toy")
    assert {path.name for path in files} == set(snapshot(folder))
    assert set(snapshot(folder)) == {
        f"{name}.{kind}" for name in ("validation_top1", "training_loss") for kind in ("svg", "png")
    }
    for name in ("validation_top1", "training_loss"):
        assert ElementTree.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        with Image.open(folder / f"{name}.png") as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(10**6)) > 10


@pytest.mark.slow
def test_the_bytes_depend_on_nothing_but_the_histories(desk, tmp_path):
    """Another process, with another hash seed and a user's own style."""
    write_histories(desk)
    plot_experiment(desk.experiment, desk.results, desk.ledger)
    folder = figure_folder(desk.results, "toy")
    first = snapshot(folder)
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: black\nfont.size: 20\nsvg.fonttype: none\n")
    script = (
        "import sys; from pathlib import Path; from distillery.experiment import load_experiment\n"
        "from distillery.reporting.figures import plot_experiment\n"
        "plot_experiment(load_experiment(Path(sys.argv[1])), Path(sys.argv[2]), Path('none'))"
    )
    changed = {"PYTHONHASHSEED": "7", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "SOURCE_DATE_EPOCH": "1"}
    command = [sys.executable, "-c", script, str(desk.experiment.path), str(desk.results)]
    subprocess.run(command, check=True, env=os.environ | changed, cwd=tmp_path)
    assert snapshot(folder) == first
    assert b"<dc:date>" not in first["training_loss.svg"]


def test_a_line_is_the_mean_and_a_band_the_range_over_seeds():
    figure = draw([curve("small", [[50, 60], [52, 66]]), curve("big", [70, 80], teaches=True)], TOP1)
    (axes,) = figure.axes
    assert list(lines(axes)["small"].get_ydata()) == [51, 63]
    assert list(lines(axes)["big"].get_ydata()) == [70, 80]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1.0, 50.0), (1.0, 52.0), (2.0, 60.0), (2.0, 66.0)} <= corners


def test_teachers_are_dashed_and_colours_differ():
    figure = draw([curve("big", [70, 80], teaches=True), curve("small", [50, 60], teacher="big")], TOP1)
    drawn = lines(figure.axes[0])
    assert drawn["big"].is_dashed()
    assert not drawn["small"].is_dashed()
    assert drawn["big"].get_color() != drawn["small"].get_color()
    assert len(set(COLOURS)) == len(COLOURS)


def long_teacher(students=1):
    runs = [curve("big", range(70, 100), teaches=True)]
    return runs + [curve(f"small{index}", [50, 60, 70, 80, 90], teacher="big") for index in range(students)]


def test_a_teacher_that_trains_far_longer_has_a_panel_of_its_own():
    figure = draw(long_teacher(), TOP1)
    teachers, students = figure.axes
    assert (list(lines(teachers)), list(lines(students))) == (["big"], ["small0"])
    assert students.get_xlim()[1] < 6
    assert teachers.get_ylim() == students.get_ylim()
    assert lines(teachers)["big"].get_color() != lines(students)["small0"].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["big", "small0"]


def test_among_many_panels_a_longer_teacher_is_the_level_it_reached():
    figure = draw(long_teacher(students=8), TOP1)
    assert figure.axes[0].get_xlim()[1] > 30
    assert figure.axes[1].get_xlim()[1] < 6
    teacher, own = figure.axes[1].lines
    assert list(teacher.get_ydata()) == [99, 99]
    assert len(own.get_xdata()) == 5
    assert "its teacher after its last epoch" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_the_legend_lists_runs_as_their_lines_end_and_the_diverged_last():
    figure = draw([curve("low", [1, 2]), curve("lost", [1, np.nan]), curve("high", [1, 9])], TOP1)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["high", "low", "lost"]


def test_the_legend_explains_only_what_is_drawn():
    (plain,) = draw([curve("one", [1, 2])], TOP1).legends
    assert plain.get_title().get_text() == ""
    (full,) = draw([curve("one", [[1, 2], [2, 3]]), curve("big", [3, 4], teaches=True)], TOP1).legends
    assert full.get_title().get_text() == "band: range over seeds\ndashed: teaches"


def test_each_of_many_runs_has_a_panel_with_its_teacher():
    runs = [curve("big", [70, 80], teaches=True)]
    runs += [curve(f"small{index}", [[50, 60 + index], [50, 62 + index]], teacher="big") for index in range(24)]
    figure = draw(runs, TOP1)
    assert len(figure.axes) == 25
    assert [axes.get_title(loc="left") for axes in figure.axes] == [one.run for one in runs]
    teacher, own = figure.axes[3].lines
    assert teacher.is_dashed()
    assert list(teacher.get_ydata()) == [70, 80]
    assert list(own.get_ydata()) == [50, 63]
    assert len(figure.axes[0].lines) == 1
    envelope = figure.axes[3].collections[0].get_paths()[0].vertices
    assert (envelope[:, 1].min(), envelope[:, 1].max()) == (50, 84)


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, 25])
def test_the_legend_of_panels_is_not_cut_off(count):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    runs = [curve("big", [70, 80], teaches=True)]
    runs += [curve(f"small{index}", [[50, 60], [50, 62]], teacher="big") for index in range(count - 1)]
    figure = draw(runs, TOP1)
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 3
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_panels_that_are_not_needed_are_not_shown():
    figure = draw([curve(f"run{index}", [1, 2]) for index in range(11)], TOP1)
    assert [axes.get_visible() for axes in figure.axes] == [True] * 11 + [False]


@pytest.mark.parametrize("steep", [[10, 30], [10, 20, 30, 60, 80]])
def test_the_scale_of_top1_is_made_for_the_later_epochs(steep):
    """Of each run its own, so that a short one beside a long one is seen as well."""
    short = [*steep, *[90.0] * (3 * len(steep) - 1), 96.0]
    long = [*[10.0] * 5, *[95.0] * 25]
    low, high = draw([curve("short", short), curve("long", long)], TOP1).axes[0].get_ylim()
    assert (low, high) == pytest.approx((90 - 0.3, 96 + 0.3))


def test_the_scale_of_the_loss_is_logarithmic_where_it_can_be():
    assert draw([curve("one", [2.0, 0.1])], LOSS).axes[0].get_yscale() == "log"
    assert draw([curve("one", [2.0, 0.0])], LOSS).axes[0].get_yscale() == "linear"


@pytest.mark.slow
@pytest.mark.parametrize("quantity", QUANTITIES, ids=lambda quantity: quantity.name)
@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [5.0, np.nan], [5.0] + 9 * [np.nan], [np.nan, np.nan]], ids=str)
@pytest.mark.parametrize("count", [1, 8])
def test_odd_histories_are_drawn_without_a_warning(quantity, values, count, tmp_path, recwarn):
    figure = draw([curve(f"run{index}", [values, values]) for index in range(count)], quantity)
    figure.savefig(tmp_path / "x.png")
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.slow
def test_runs_of_different_length_share_a_figure(tmp_path):
    for count in (2, 8):
        runs = [curve(f"run{index}", range(1, 3 + index)) for index in range(count)]
        draw(runs, TOP1).savefig(tmp_path / "x.png")


def test_a_run_with_a_moving_average_shows_the_better_weights():
    history = {"val_top1": np.array([50.0, 60.0]), "ema_val_top1": np.array([10.0, 65.0])}
    assert list(TOP1.take(history)) == [50, 65]
    assert list(TOP1.take({"val_top1": np.array([50.0])})) == [50]


@pytest.mark.slow
def test_imported_networks_have_no_curve(desk):
    desk.write_experiment(
        desk.text.replace("{model: cifar_resnet20, recipe: toy, seeds: [0]}", "{model: cifar_resnet20, weights: w.pth}")
    )
    write_histories(desk)
    (figure_folder(desk.results, "toy").parent.parent / "toy" / "big" / "seed0" / "history.csv").unlink()
    assert len(plot_experiment(desk.experiment, desk.results, desk.ledger)) == 4


def test_an_experiment_of_imported_networks_has_a_folder_without_figures(desk):
    text = desk.text.replace("recipe: toy", "weights: w.pth").partition("    small-kd")[0].replace(", seeds: [0]", "")
    desk.write_experiment(text)
    folder = figure_folder(desk.results, "toy")
    folder.mkdir(parents=True)
    (folder / "old.svg").write_text("")
    assert plot_experiment(desk.experiment, desk.results, desk.ledger) == []
    assert snapshot(folder) == {}


def test_nothing_is_written_when_a_history_is_missing(desk):
    with pytest.raises(UserError, match=r"history.csv: missing"):
        plot_experiment(desk.experiment, desk.results, desk.ledger)
    assert not figure_folder(desk.results, "toy").exists()
