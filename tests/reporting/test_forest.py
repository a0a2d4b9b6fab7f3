"""The forest plot: gains where they are, significant ones apart by more than colour."""

import pytest

from distillery.reporting.forest import draw_forest

RUN = "    {}: {{model: cifar_resnet8, recipe: toy, teacher: big, objective: {{ce: {{}}, kd: {{temperature: {}}}}}}}\n"
TABLE = """  tables:
    methods: {rows: [big, small, won, lost, same, single], baseline: small, columns: [top1, gain]}
"""
GAINS = {"won": (3.0, 3.1, 2.9), "lost": (-3.0, -3.1, -2.9), "same": (0.5, -0.5, 0.2), "single": (1.0,)}


@pytest.fixture
def drawn(desk):
    text = desk.text.partition("  tables:")[0] + "".join(RUN.format(run, 2 + i) for i, run in enumerate(GAINS)) + TABLE
    desk.write_experiment(text.replace("single: {", "single: {seeds: [0], "))
    desk.write_results()
    for run, gains in GAINS.items():
        for seed, gain in enumerate(gains):
            desk.write_metrics(run, seed, top1=90.0 + seed + gain)
    return desk


def test_each_compared_run_is_a_line_with_its_interval(drawn):
    content = drawn.content("methods")
    (axes,) = draw_forest(content).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["won", "lost", "same", "single"]
    dots = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    bars = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([3.0, -3.0, 0.2 / 3, 1.0])
    gains = [content.entries[run, "gain"].gain for run in ("won", "lost", "same")]
    assert [list(bar.get_xdata()) for bar in bars] == [[gain.low, gain.high] for gain in gains]


def test_what_is_significant_differs_in_form_too(drawn):
    figure = draw_forest(drawn.content("methods"))
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() not in ("None", None, "")]
    filled = [dot.get_markerfacecolor() != "white" for dot in dots]
    assert list(zip([dot.get_marker() for dot in dots], filled, strict=True)) == [
        ("o", True), ("s", True), ("o", False), ("o", False)
    ]  # fmt: skip
    assert [label.get_fontweight() for label in axes.get_yticklabels()] == ["bold", "normal", "normal", "normal"]
    meanings = {text.get_text() for text in figure.legends[0].get_texts()}
    assert meanings == {"significant gain", "significant loss", "not significant"}


def test_n_and_p_stand_beside_the_line_and_the_baseline_at_zero(drawn):
    (axes,) = draw_forest(drawn.content("methods")).axes
    texts = {text.get_text() for text in axes.texts}
    assert {"small", "+3.00  (n = 3, p 0.001)", "+1.00  (n = 1)"} <= texts
    assert any(list(line.get_xdata()) == [0, 0] for line in axes.lines)


def test_nothing_is_drawn_as_long_as_nothing_is_compared(desk, drawn):
    for seed in (0, 1, 2):
        drawn.write_metrics("small", seed, digest="0" * 16)
    assert draw_forest(drawn.content("methods")) is None
