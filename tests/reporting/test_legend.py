"""The experiment explains what occurs in it, and nothing else."""

import pytest

from distillery.experiment.schema.columns import COLUMNS
from distillery.paths import table_folder
from distillery.reporting.measurements import read_measurements
from distillery.reporting.tables import tabulate_experiment


@pytest.fixture
def experiment(desk):
    def text(*ledger):
        desk.write_results()
        desk.write_ledger(*ledger)
        return tabulated(desk)

    return text


def tabulated(desk):
    tabulate_experiment(desk.experiment, desk.results, desk.ledger)
    return (table_folder(desk.results) / "toy.md").read_text()


def test_the_experiment_opens_with_its_data_and_seeds(experiment):
    assert experiment().splitlines()[:3] == [
        "# toy",
        "",
        "Data set toy: 10 classes, 1,440 training images, and 360 validation images, on which every score is taken. "
        "Seeds 0, 1 and 2, unless n says otherwise.",
    ]


def test_images_in_both_splits_are_reported(desk, experiment):
    desk.write_manifest(overlap=1)
    assert "**1 validation image is also among the training images.**" in experiment()
    desk.write_manifest(overlap=1234)
    assert "**1,234 validation images are also among the training images.**" in experiment()


def test_a_single_seed_is_no_plural(desk, experiment):
    desk.write_experiment(desk.text.replace("seeds: [0, 1, 2]", "seeds: [0]"))
    text = experiment()
    assert "Seed 0, unless" in text
    assert "±" not in text


def test_columns_are_explained_once_each(experiment):
    text = experiment()
    for heading in ("Top-1 (%)", "NLL", "Agreement (%)", "Params", "Size"):
        assert text.count(f"*{heading}*: ") == 1
    assert "*ECE (%)*" not in text
    assert "Latency" not in text


def test_only_the_selection_rules_in_use_are_explained(desk, experiment):
    assert "*last epoch*: " in experiment()
    assert "*best epoch*: " not in experiment()
    desk.write_results()
    for seed in (0, 1, 2):
        desk.write_metrics("small", seed, selection="best")
    text = tabulated(desk)
    assert "*best epoch*: " in text
    assert "*imported*: " not in text


def test_scores_of_an_epoch_chosen_by_held_out_images_say_so(desk, experiment):
    experiment()
    for seed in (0, 1, 2):
        desk.write_metrics("small", seed, selection="best", selection_split="holdout")
    text = tabulated(desk)
    assert "best held-out |" in text
    assert "*best held-out*: " in text
    assert "*best epoch*: " not in text


@pytest.mark.slow
def test_the_verdict_is_explained_where_there_is_one(experiment):
    assert "Verdict" not in experiment()
    text = experiment("small,top1,91.5,,,last,here")
    for word in ("reproduced", "within noise", "not reproduced"):
        assert f"  - *{word}*: " in text
    assert "not comparable" not in text
    assert "Parameters, operations and size" not in text
    assert "*not comparable*: " in experiment("small,top1,91.5,,,best,here")
    assert "Parameters, operations and size" in experiment("small,params,78e3,,,,here")


def test_a_gain_over_published_is_explained_where_there_is_one(desk, experiment):
    desk.write_experiment(desk.text.replace("columns: [top1,", "columns: [top1, gain_over_published,"))
    explained = "A gain over published is judged as the top-1 behind it"
    assert explained not in experiment("small,top1,91.5,,,last,here")
    text = experiment("small,top1,91.5,,,last,here", "small,gain_over_published,0.6,,,,here")
    assert explained in text
    assert "*Gain over published (points)*: top-1 less the best that was published for the network before" in text
    heads, _, *rows = [line.split("|") for line in text.splitlines() if line.startswith("|")][:5]
    heads = [head.strip() for head in heads]
    gains = {row[1].strip(): row[heads.index("Gain over published (points)")].strip() for row in rows}
    top1 = COLUMNS["top1"].value(read_measurements(desk.experiment, desk.results)["small"])
    assert gains == {"big": "–", "small": f"{top1.mean - 90.9:.2f} ± {top1.std:.2f}", "small-kd": "–"}


def test_each_source_is_cited_once_with_its_runs(experiment):
    text = experiment(
        "small,top1,91.5,,,,One *et al.* 2020", "small,nll,0.3,,,,One *et al.* 2020", "big,top1,95,,,,Two 2021"
    )
    assert text.endswith("- **Published numbers.**\n  - Two 2021: big.\n  - One \\*et al.\\* 2020: small.\n")


def test_nothing_bold_is_explained_where_nothing_is_bold(desk, experiment):
    assert "**bold**" in experiment()
    desk.write_experiment(desk.text.replace("rows: [big, small, small-kd]", "rows: [small]"))
    assert "**bold**" not in experiment()
