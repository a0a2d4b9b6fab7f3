"""What is said of banks before they are made is what they are: bytes of every format, orders, and who shares one."""

import pytest

from distillery.cluster.signals import StopSignal
from distillery.data.prepare import prepare_dataset
from distillery.experiment import load_experiment
from distillery.experiment.bank import banks_of
from distillery.experiment.loading import load_dataset
from distillery.training.answers import record_answers
from distillery.training.banks import forecast_banks
from distillery.training.forecast import Forecast
from distillery.training.job import Job, Machine
from distillery.training.run import make_run

RECIPE = """
epochs: 2
batch: 64
optimizer: {name: sgd, lr: 0.2, momentum: 0.9}
schedule: {name: constant}
preprocess: {size: 8}
"""
EXPERIMENT = """
banks:
  dataset: digits
  seeds: [0, 1]
  defaults: {model: cifar_resnet8, model_args: {width: 8}, recipe: short}
  runs:
    big:       {seeds: [0]}
    float32:   {crops: 2, teacher: {run: big, answers: bank}, objective: {kd: {}}}
    same:      {crops: 2, teacher: {run: big, answers: bank}, objective: {ce: {}, kd: {}}, epochs: 5, batch: 32}
    float16:   {crops: 3, teacher: {run: big, answers: bank, rows: float16}, objective: {kd: {}}}
    top:       {crops: 1, teacher: {run: big, answers: bank, rows: {top: 4}}, objective: {kd: {}}}
    embedding: {crops: 2, teacher: {run: big, answers: bank, rows: float16}, objective: {kd: {}, rkd: {}}}
    epochs:    {teacher: {run: big, answers: bank}, objective: {kd: {}}}
    repeated:  {teacher: {run: big, answers: bank}, objective: {kd: {}}, repeats: 3, drop_last: false}
    partners:  {teacher: {run: big, answers: bank}, objective: {kd: {}, bake: {partners: 1}}}
    few:       {labels: 0.1, labelled_share: 0.25, teacher: {run: big, answers: bank}, objective: {ce: {}, kd: {}}}
"""
LINE = "digits: {path: %s, bundled: digits, classes: 10, images: {train: 1438, val: 359}}\n"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of which nothing is made; its experiment and its results."""
    folder = tmp_path_factory.mktemp("banks")
    (folder / "config/recipes").mkdir(parents=True)
    (folder / "config/banks.yaml").write_text(EXPERIMENT)
    (folder / "config/recipes/short.yaml").write_text(RECIPE)
    (folder / "config/datasets.yaml").write_text(LINE % (folder / "digits"))
    return load_experiment(folder / "config/banks.yaml"), folder / "results"


@pytest.fixture(scope="module")
def before(page):
    """What is said of each bank before anything is made, by the first run that shares it."""
    return {bank.members[0][0]: bank for bank in Forecast(*page, workers=0).banks if bank.members[0][1] == 0}


@pytest.fixture(scope="module")
def made(page, before):
    """The page with its data set and its teacher."""
    experiment, results = page
    dataset = load_dataset(experiment.path.parent / "datasets.yaml", "digits")
    prepare_dataset("digits", dataset, results / "datasets/digits", workers=1)
    make_run(Job(experiment, "big", 0, results, Machine(workers=0, threads=1)))
    return experiment, results


@pytest.mark.parametrize("run", ["float32", "float16", "top", "embedding", "epochs", "repeated", "partners", "few"])
def test_a_bank_has_the_bytes_that_were_said_before_anything_was_made(made, before, run):
    experiment, results = made
    record_answers(Job(experiment, run, 0, results, Machine(workers=0, threads=1)), StopSignal())
    bank = before[run]
    real = sum(path.stat().st_size for path in bank.folder.iterdir())
    assert bank.bytes == pytest.approx(real, rel=0.01)
    after = next(each for each in Forecast(experiment, results, workers=0).banks if each.address == bank.address)
    assert after.bytes == bank.bytes


def test_a_shared_bank_is_counted_once(page, before):
    experiment, _ = page
    assert before["float32"].members == [("float32", 0), ("float32", 1), ("same", 0), ("same", 1)]
    assert "same" not in before
    assert len(Forecast(*page, workers=0).banks) == len(banks_of(experiment, "big")) == 4 + 2 * 4


def test_a_bank_is_forecast_in_a_line(page, before):
    bank = before["float32"]
    assert bank.line() == (
        f"bank {bank.address} of big, for float32/seed0, float32/seed1, same/seed0, same/seed1: 2 views of 1,438 "
        f"images, 40 bytes an image: 0.1 MB; the teacher answers 2,876 images, live it would answer 19,712"
    )
    experiment, results = page
    (unknown, *_) = forecast_banks(experiment, results, None, 10)
    assert (unknown.bytes, unknown.answered) == (0, 0)
    assert unknown.line().endswith("; its size is known once digits is prepared")
