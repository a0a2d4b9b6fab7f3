"""How many rows of each kind beat a baseline: counted as the table says it, and in words."""

import pytest

from distillery.reporting.content import gather
from distillery.reporting.findings import describe_tally, kind_of, tally
from distillery.reporting.measurements import read_measurements

PAGE = """
toy:
  dataset: toy
  seeds: [0, 1, 2]
  runs:
    big:    {model: cifar_resnet20, recipe: toy, seeds: [0]}
    small:  {model: cifar_resnet8, recipe: toy}
    kd:     {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, kd: {}}}
    dist:   {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, dist: {}}}
    rkd:    {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, rkd: {}}}
    ofa:    {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, ofa: {}}}
    sum:    {model: cifar_resnet8, recipe: toy, teacher: big, objective: {ce: {}, kd: {}, sp: {}}}
    crd:    {model: cifar_resnet8, recipe: toy, teacher: big, seeds: [0], objective: {ce: {}, crd: {}}}
    pskd:   {model: cifar_resnet8, recipe: toy, seeds: [1], objective: {pskd: {}}}
  tables:
    gains: {rows: [big, small, kd, dist, rkd, ofa, sum, crd, pskd], columns: [top1, gain], baseline: small}
"""
TOP1 = {
    "big": [95.0],
    "small": [90.0, 91.0, 92.0],
    "kd": [92.0, 93.01, 93.99],  # better
    "dist": [90.0, 92.0, 91.5],  # nobody can tell
    "rkd": [88.0, 89.01, 89.99],  # worse
    "ofa": [90.5, 91.53, 92.49],  # better, by a hair of spread
    "sum": [91.0, 93.0, 93.4],  # its interval alone leaves out 0
    "crd": [90.0],
    "pskd": [91.4],
}


@pytest.fixture
def counted(desk):
    desk.write_experiment(PAGE)
    experiment = desk.experiment
    for run, values in TOP1.items():
        for seed, top1 in zip(experiment.seeds(run), values, strict=True):
            desk.write_metrics(run, seed, top1=top1)
    runs = read_measurements(experiment, desk.results)
    return experiment, gather(experiment, "gains", experiment.config.tables["gains"], runs, {})


def test_terms_are_of_a_kind_by_what_they_look_at(counted):
    experiment, _ = counted
    assert {run: kind_of(experiment, run) for run in experiment.config.runs} == {
        "big": "terms without a teacher",
        "small": "terms without a teacher",
        "kd": "logit terms",
        "dist": "logit terms",
        "rkd": "feature terms",
        "ofa": "feature terms",
        "sum": "feature terms",
        "crd": "feature terms",
        "pskd": "terms without a teacher",
    }


def test_rows_are_counted_as_their_cells_say(counted):
    found = tally(*counted)
    logits, features, alone = found["logit terms"], found["feature terms"], found["terms without a teacher"]
    assert (logits.better, logits.worse, logits.unclear) == (("kd",), (), ("dist",))
    assert (features.better, features.worse, features.unclear) == (("ofa",), ("rkd",), ("sum",))
    assert (features.above, features.below) == (("sum",), ())
    assert (features.higher, features.lower) == (("ofa", "sum"), ("rkd", "crd"))
    assert (alone.tested, alone.higher) == (0, ("pskd",))
    shown = {run for run in TOP1 if (gain := counted[1].entries[run, "gain"].gain) is not None and gain.shown}
    assert shown == {"kd", "ofa", "rkd"}


def test_a_baseline_that_is_no_term_is_not_counted(counted):
    assert tally(*counted, without=["kd"])["logit terms"].better == ()


def test_the_words_have_each_count_and_each_name(counted):
    features, logits, alone = describe_tally(tally(*counted), "small")
    assert (
        "Of 2 with several seeds, **1 beats `small` significantly** (`kd`), 0 are significantly worse, and of 1"
        in logits
    )
    assert "**1 beats `small` significantly** (`ofa`), 1 is significantly worse (`rkd`)" in features
    assert "leaves out 0 above for 1 (`sum`) and below for 0." in features
    assert "By the mean alone, also of one seed, 2 of 4 scored higher (`ofa`, `sum`); that proves nothing." in features
    assert alone.startswith("- **Terms without a teacher.** By the mean alone, also of one seed, 1 of 1 scored higher")
