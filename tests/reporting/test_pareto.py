"""The Pareto front: exactly the networks that no other beats in both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillery.reporting.pareto import Point, draw_pareto, pareto_front

TABLE = """    speeds:
      heading: model
      rows: {{big: ResNet-20, small: ResNet-8, small-kd: "{name}"}}
      columns: [{metric}, throughput, gpu_throughput, cpu_throughput]
      figure: pareto
"""

numbers = st.integers(1, 6).map(float)


@pytest.mark.slow
@given(st.lists(st.tuples(numbers, numbers), max_size=12))
def test_no_point_beats_one_of_the_front_and_each_other_is_beaten(pairs):
    points = [Point(str(index), *pair) for index, pair in enumerate(pairs)]

    def beaten(point):
        better = [p for p in points if p.speed >= point.speed and p.accuracy >= point.accuracy]
        return any((p.speed, p.accuracy) != (point.speed, point.accuracy) for p in better)

    front = pareto_front(points)
    assert {(p.speed, p.accuracy) for p in front} == {(p.speed, p.accuracy) for p in points if not beaten(p)}
    assert [p.speed for p in front] == sorted({p.speed for p in front})


def draw(desk, metric="top1", name=""):
    desk.write_experiment(desk.text.partition("    methods:")[0] + TABLE.format(metric=metric, name=name))
    return draw_pareto(desk.content("speeds"))


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_visible()}


@pytest.mark.parametrize("metric", ["top1", "error1"])
def test_measured_and_published_speeds_have_panels_of_their_own(desk, metric):
    desk.write_results()
    desk.write_profile("small", cpu_throughput=10.0)
    desk.write_ledger(
        "small,cpu_throughput,80,,,,there",
        "small,error1,8.5,,,,there",
        "big,cpu_throughput,8,,,,there",
        "big,top1,95,,,,x",
    )
    found = panels(draw(desk, metric))
    assert set(found) == {"Images/s, here", "CPU images/s, here", "CPU images/s, as published"}
    front, others = found["Images/s, here"].lines
    assert list(zip(*front.get_data(), strict=True)) == [(1234.5, 95.0), (4321.5, 93.0)]
    assert list(zip(*others.get_data(), strict=True)) == [(4321.5, 91.0)]
    assert [text.get_text() for text in found["Images/s, here"].texts] == ["ResNet-20", "small-kd", "ResNet-8"]
    assert list(found["CPU images/s, as published"].lines[0].get_data()[1]) == [95.0, 91.5]


def test_names_stay_inside_and_apart(desk):
    desk.write_results()
    figure = draw(desk, name="A name too long for the right")
    figure.draw_without_rendering()
    axes = panels(figure)["Images/s, here"]
    boxes = [text.get_window_extent() for text in axes.texts]
    frame = axes.get_window_extent()
    for index, box in enumerate(boxes):
        assert frame.contains(box.x0, box.y0)
        assert frame.contains(box.x1, box.y1)
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_without_points_there_is_no_figure(desk):
    assert draw(desk) is None
