"""The column `gain`: runs against a table's baseline, in Markdown, LaTeX and CSV."""

import csv
import re

import pytest

from distillery.errors import UserError
from distillery.paths import run_folder, table_folder
from distillery.reporting.sheets import show_p
from distillery.reporting.statistics import paired_gain, seeds_needed
from distillery.reporting.tables import tabulate_experiment, tabulate_table

SEEDS = "seeds: [0, 1, 2]"
TABLE = """  tables:
    methods:
      rows: [big, small, small-kd, small-t1]
      baseline: small
      columns: [top1, gain]
    one:
      rows: [small-kd]
      baseline: small
      columns: [gain]
"""
RUN = "    small-t1: {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, kd: {temperature: 1}}}\n"
SMALL = [90.0, 91.0, 92.0, 91.5, 90.5, 91.2, 90.8, 91.1, 90.2, 91.9]
KD = [92.1, 93.0, 94.2, 93.4, 92.5, 93.3, 92.7, 93.1, 92.4, 93.7]
T1 = [90.5, 90.0, 92.5, 91.0, 91.0, 90.7, 91.3, 90.6, 90.7, 91.4]


@pytest.fixture
def compared(desk):
    """Writes an experiment with some seeds and its metrics."""

    def write(seeds, small=SMALL, kd=KD, t1=T1, tables=TABLE):
        text = desk.text.partition("  tables:")[0] + RUN + tables
        desk.write_experiment(text.replace(SEEDS, f"seeds: {list(range(seeds))}"))
        desk.write_metrics("big", 0, top1=98.0)
        for run, values in (("small", small), ("small-kd", kd), ("small-t1", t1)):
            for seed in range(seeds):
                desk.write_metrics(run, seed, top1=values[seed])
        return desk

    return write


def tabulate(desk, **options):
    tabulate_experiment(desk.experiment, desk.results, desk.ledger, **options)
    return table_folder(desk.results)


def cells(desk, table="methods", column="Gain (points)", **options):
    """The column by run, with bold marks, as the table says it alone."""
    lines = (tabulate(desk, **options) / "toy" / f"{table}.md").read_text().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    return {row[head.index("Run")]: row[head.index(column)] for row in rows}


def records(desk, table="methods"):
    with (tabulate(desk) / "toy" / f"{table}.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file) if row["metric"] == "gain"}


def test_ten_seeds_show_a_gain_in_bold(compared):
    desk = compared(10)
    kd, t1 = paired_gain(KD, SMALL), paired_gain(T1, SMALL)
    assert cells(desk) == {
        "big": "–",
        "small": "baseline",
        "small-kd": rf"**{kd.mean:+.2f} ({kd.low:.2f} to {kd.high:.2f}), p \< 0.001**",
        "small-t1": f"{t1.mean:.2f} ({t1.low:.2f} to {t1.high:.2f}), p {t1.p:.2f}",
    }
    row = records(desk)["small-kd"]
    found = [float(row[key]) for key in ("mean", "std", "n", "low", "high", "p", "p_holm", "seeds_needed")]
    assert found == [kd.mean, kd.std, 10, kd.low, kd.high, kd.p, 2 * kd.p, seeds_needed(kd.mean, kd.std)]
    assert row["baseline"] == "small"


def test_a_significant_loss_is_not_bold(compared):
    loss = cells(compared(10, kd=[value - 3 for value in KD]))["small-kd"]
    assert loss.startswith("-0.98 (-1.")
    assert "**" not in loss


def test_bold_is_decided_after_holms_correction(compared):
    """Alone in its table the run is significant, beside another it is not, and the p that is shown says so."""
    desk = compared(
        3,
        kd=[value + gain for value, gain in zip(SMALL, (0.9, 1.7, 1.3), strict=False)],
        t1=[value + gain for value, gain in zip(SMALL, (-0.5, 0.4, 0.3), strict=False)],
    )
    assert cells(desk, "one")["small-kd"] == "**+1.30 (0.31 to 2.29), p 0.030**"
    assert cells(desk)["small-kd"] == "+1.30 (0.31 to 2.29), p 0.060"


def test_two_seeds_are_tested(compared):
    desk = compared(2)
    gain = paired_gain(KD[:2], SMALL[:2])
    assert cells(desk, "one")["small-kd"].strip("*").startswith(f"+2.05 ({gain.low:.2f} to {gain.high:.2f}), p 0.0")
    assert float(records(desk, "one")["small-kd"]["p"]) == gain.p


def test_one_seed_has_no_p_and_says_how_many_would_do(compared):
    desk = compared(1)
    assert cells(desk)["small-kd"] == "+2.10 (n = 1; needs seeds)"
    row = records(desk)["small-kd"]
    assert [row[key] for key in ("mean", "std", "n", "low", "high", "p", "p_holm", "seeds_needed")] == [
        str(KD[0] - SMALL[0]), "", "1", "", "", "", "", ""
    ]  # fmt: skip
    assert "*needs seeds*" in (table_folder(desk.results) / "toy.md").read_text()


@pytest.mark.slow
def test_a_single_seed_takes_the_spread_of_the_other_rows(compared):
    desk = compared(10)
    desk.write_experiment(desk.experiment.path.read_text().replace("temperature: 1}}", "temperature: 1}}, seeds: [0]"))
    desk.write_metrics("small-t1", 0, top1=T1[0])
    needed = seeds_needed(0.5, paired_gain(KD, SMALL).std)
    assert cells(desk)["small-t1"] == f"+0.50 (n = 1; about {needed} seeds would show it)"
    assert records(desk)["small-t1"]["seeds_needed"] == str(needed)


@pytest.mark.slow
def test_seeds_that_one_run_lacks_are_left_out(compared):
    desk = compared(10)
    text = desk.experiment.path.read_text()
    desk.write_experiment(
        text.replace("small:     {model: cifar_resnet8,", "small: {seeds: [2, 5, 7, 40], model: cifar_resnet8,")
    )
    desk.write_metrics("small", 40, top1=10.0)
    for seed in (2, 5, 7):
        desk.write_metrics("small", seed, top1=SMALL[seed])
    gain = paired_gain([KD[seed] for seed in (2, 5, 7)], [SMALL[seed] for seed in (2, 5, 7)])
    assert cells(desk)["small-kd"].strip("*").startswith(f"{gain.mean:+.2f} (")
    assert cells(desk)["small-kd"].strip("*").endswith(", n = 3")
    desk.write_experiment(
        text.replace("small:     {model: cifar_resnet8,", "small: {seeds: [40], model: cifar_resnet8,")
    )
    desk.write_metrics("small", 40, top1=10.0)
    assert cells(desk)["small-kd"] == "no common seed"


def test_equal_values_are_no_gain_and_equal_differences_no_proof(compared):
    desk = compared(3, kd=SMALL, t1=[value + 0.3 for value in SMALL])
    found = cells(desk)
    assert found["small-kd"] == "0.00, p 1.00"
    assert found["small-t1"] == "+0.30 (the same for all 3 seeds)"
    text = (table_folder(desk.results) / "toy.md").read_text()
    assert "the same for all seeds has no spread" in text
    assert "no difference at all" in text


@pytest.mark.slow
def test_a_partial_table_says_what_is_missing(compared):
    desk = compared(3)
    for seed in (0, 1, 2):
        (run_folder(desk.results, "toy", "small-kd", seed) / "metrics.json").unlink()
    (run_folder(desk.results, "toy", "small-t1", 1) / "metrics.json").unlink()
    found = cells(desk, partial=True)
    assert (found["small-kd"], found["small"]) == ("not run", "baseline")
    assert records_partial(desk)["small-t1"]["n"] == "2"
    for seed in (0, 1, 2):
        (run_folder(desk.results, "toy", "small", seed) / "metrics.json").unlink()
    found = cells(desk, partial=True)
    assert (found["small-kd"], found["small-t1"]) == ("not run", "baseline not run")
    for seed in (0, 1, 2):
        desk.write_metrics("small-kd", seed)
    with pytest.raises(UserError, match=r"small/seed0/metrics.json: missing"):
        tabulate_table(desk.experiment, "one", desk.results, desk.ledger)


def records_partial(desk):
    with (tabulate(desk, partial=True) / "toy" / "methods.csv").open(newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file) if row["metric"] == "gain"}


def test_a_baseline_that_is_no_row_is_compared_with_and_named(compared):
    desk = compared(3)
    (found,) = cells(desk, "one").items()
    assert found[0] == "small-kd"
    assert found[1].strip("*").startswith("+2.10 (")
    assert "Gains are over small, paired by seed." in (table_folder(desk.results) / "toy" / "one.md").read_text()
    assert "Gains are over small, paired by seed." in (table_folder(desk.results) / "toy.tex").read_text()


def test_the_baseline_may_teach_and_its_students_are_compared(compared):
    desk = compared(1, tables=TABLE.replace("baseline: small", "baseline: big"))
    found = cells(desk)
    assert (found["big"], found["small"]) == ("baseline", "-8.00 (n = 1; needs seeds)")


def test_latex_writes_signs_and_intervals_as_mathematics(compared):
    tex = (tabulate(compared(10, kd=[value - 3 for value in KD])) / "toy.tex").read_text()
    assert re.search(r"small-kd & .* \$-\$0\.98 \(\$-\$1\.\d\d to \$-\$0\.\d\d\), p \$<\$ 0\.001 ", tex)


def test_a_grid_shows_gains_in_its_cells(compared):
    grid = """  tables:
    grid:
      grid: {across: [T4, T1], down: {students: [small-kd, small-t1]}}
      baseline: small
      columns: [top1, gain]
"""
    text = (tabulate(compared(2, tables=grid)) / "toy" / "grid.md").read_text()
    assert "| 92.55 ± 0.64 / +2.05 (" in text.replace("**", "").replace("  ", " ")


def test_the_legend_explains_gains_where_there_are_some(compared, desk):
    compared(3)
    text = (tabulate(desk) / "toy.md").read_text()
    assert "**Gain.** " in text
    assert "needs seeds" not in text
    compared(3, tables=TABLE.replace("      baseline: small\n", "").replace(", gain]", "]").replace("[gain]", "[top1]"))
    text = (tabulate(desk) / "toy.md").read_text()
    assert "Gain" not in text


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "baseline: small\n",
            "baseline: smal\n",
            r"toy\.tables\.methods\.baseline: no run 'smal'; did you mean 'small'",
        ),
        ("      baseline: small\n", "", r"the column gain needs a `baseline`"),
        ("columns: [top1, gain]", "columns: [top1]", r"the baseline 'small' has no use without the column gain"),
    ],
)
def test_a_baseline_and_its_column_go_together(desk, old, new, reason):
    desk.write_experiment(desk.text.partition("  tables:")[0] + RUN + TABLE.replace(old, new, 1))
    with pytest.raises(UserError, match=reason):
        desk.experiment  # noqa: B018


def test_a_gain_of_our_own_cannot_be_published(compared):
    desk = compared(1)
    desk.write_ledger("small,gain,0.6,,,,here")
    with pytest.raises(UserError, match=r"row 2, metric: 'gain' is not valid; .* gain_over_published"):
        tabulate(desk)


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0004, "p < 0.001"),
        (0.003944, "p 0.004"),
        (0.0159, "p 0.016"),
        (0.04991, "p 0.049"),
        (0.05, "p 0.050"),
        (0.0996, "p 0.100"),
        (0.101, "p 0.10"),
        (1.0, "p 1.00"),
    ],
)
def test_a_p_value_is_rounded_but_never_to_the_other_side_of_significance(p, shown):
    assert show_p(p) == shown
