"""Any legal sum of terms trains, and continues to the byte after it was stopped."""

import json
import random

import pytest
from tests.conftest import written

from distillery.cluster.signals import Stopped
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.schema.objective import TERMS

# What the defaults are too large for.
OPTIONS = {"crd": {"negatives": 9}, "mgd": {"update_images": 12, "loss_factor": 100}, "overhaul": {"loss_factor": 100}}
RUN = "{{model: cifar_resnet8, recipe: tiny,{teacher} objective: {terms}}}"


@pytest.fixture
def legal_sum(workplace):
    """Write the run ``student`` with three terms that go together, drawn by a number; their names."""
    workplace.edit_recipe(
        "batch: 12\noptimizer: {name: sgd, lr: 0.001, momentum: 0.9}\nschedule: {name: constant}\ndrop_last: false"
    )
    workplace.edit("  tables:", "    student: LINE\n  tables:")
    text = workplace.experiment.read_text()

    def draw(number):
        generator = random.Random(number)
        while True:
            names = generator.sample(sorted(TERMS), 3)
            terms = json.dumps({name: OPTIONS.get(name, {}) for name in names})
            teacher = " teacher: big," if any(TERMS[name].needs.teacher for name in names) else ""
            workplace.experiment.write_text(text.replace("LINE", RUN.format(teacher=teacher, terms=terms)))
            try:
                load_experiment(workplace.experiment)
            except UserError as error:
                assert "leave one out" in str(error)  # noqa: PT017  # these exclude each other, and nothing else does
            else:
                return names

    return draw


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_ten_random_sums_train_stop_and_continue_to_the_byte(workplace, legal_sum, stop_after, monkeypatch, number):
    names = legal_sum(number)

    workplace.make("big")
    straight = written(workplace.make("student", results="straight"))
    columns = straight["history.csv"].decode().partition("\n")[0].split(",")
    assert {f"train_{name}" for name in names} <= set(columns)
    stop_after(2)
    with pytest.raises(Stopped):
        workplace.make("student", results="results")
    monkeypatch.undo()
    assert written(workplace.make("student", results="results")) == straight
