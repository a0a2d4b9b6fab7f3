"""A grid as a picture: the text of each cell, and the colours of the students."""

import pytest

from distillery.reporting.heat_map import draw_heat_map

GRID = """    grid:
      title: A grid of two settings whose title is far too long for a small picture and has to be broken
      columns: [{metric}, nll]
      grid: {{corner: " | T", across: [a, b], down: {{"Teacher | -": [big, null], "Student | 1": [small, small-kd]}}}}
      figure: heat_map
"""


def draw(desk, metric="top1"):
    desk.write_experiment(desk.text.partition("    methods:")[0] + GRID.format(metric=metric))
    return draw_heat_map(desk.content("grid"))


def colours(figure):
    (image,) = figure.axes[0].images
    return image.get_array()


def test_cells_have_their_values_and_the_published_ones(desk):
    desk.write_results()
    desk.write_ledger("small,error1,8.50,,,,here")
    figure = draw(desk)
    axes = figure.axes[0]
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "95.00",
        (0, 1): "91.00\npublished 91.50",
        (1, 1): "93.00",
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Teacher", "Student, 1"]
    assert "\n" in figure.get_suptitle()


@pytest.mark.parametrize(("metric", "values"), [("top1", [91, 93]), ("error1", [9, 7])])
def test_the_scale_is_that_of_the_students_and_the_best_is_darkest(desk, metric, values):
    desk.write_results()
    figure = draw(desk, metric)
    array = colours(figure)
    assert array.mask.tolist() == [[True, True], [False, False]]
    assert array[1].tolist() == pytest.approx(values)
    (image,) = figure.axes[0].images
    light = [sum(image.cmap(image.norm(value))[:3]) for value in values]
    assert light[1] < light[0]
    assert [text.get_color() for text in figure.axes[0].texts][-1] == "white"


def test_what_was_not_run_is_hatched(desk):
    for seed in range(3):
        desk.write_metrics("small", seed)
    figure = draw(desk)
    assert [text.get_text() for text in figure.axes[0].texts] == ["not run", "90.00", "not run"]
    assert len(figure.axes[0].patches) == 2


def test_a_grid_without_values_is_not_drawn(desk):
    assert draw(desk) is None
