"""No number of the configuration takes anything else for a number, and each has bounds, in fields to come as well."""

import math
from typing import Annotated

import pytest
from pydantic import ValidationError, create_model

import distillery.experiment.schema.dataset
import distillery.experiment.schema.experiment  # noqa: F401  (they define the blocks)
from distillery.experiment.schema.block import Block
from distillery.experiment.schema.recipe import TimmOptimizer

SHAPES = [lambda v: v, lambda v: (v,), lambda v: (v, v), lambda v: (v, v, v), lambda v: {"train": v}]
# Truth values, text, and what is too large for anything that a configuration says.
NEVER = [True, False, "1", "1e-3", math.inf, -math.inf, math.nan, 1e300, -1e300, 10**40]
# A network's own arguments are as its builder takes them, words and truth values among them.
FREE = {
    ("RunConfig", "model_args"): [True, False, "1", "1e-3", 1e300, -1e300, 10**40, -1],
    ("ExperimentConfig", "defaults"): [*NEVER, -1],  # they become keys of runs, and are read as such
}


def blocks(parent=Block):
    for block in parent.__subclasses__():
        if block.__module__.startswith("distillery.experiment.schema"):
            yield block
        yield from blocks(block)


def accepts(probe, value):
    try:
        probe.model_validate({"value": value})
    except ValidationError:
        return False
    return True


def numbers():
    """Every field that takes a number, as a block of its own, with the shape in which it takes it."""
    for block in blocks():
        for name, field in block.model_fields.items():
            kind = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            probe = create_model("Probe", __base__=Block, value=(kind, ...))
            for shape in SHAPES:
                if any(accepts(probe, shape(value)) for value in (0, 1, 2, 0.5)):
                    yield pytest.param(probe, shape, (block.__name__, name), id=f"{block.__name__}.{name}")


NUMBERS = list(numbers())


def test_the_numbers_of_every_kind_of_block_are_found():
    found = {number.id for number in NUMBERS}
    assert {"Recipe.epochs", "Sgd.lr", "StepSchedule.drops", "MGDOptions.weight", "Statistics.std"} <= found
    assert {"Dataset.images", "ExperimentConfig.seeds", "CRDOptions.momentum", "RandomResizedCrop.scale"} <= found
    assert len(found) > 60


@pytest.mark.parametrize(("probe", "shape", "field"), NUMBERS)
def test_a_number_takes_nothing_else_and_has_bounds(probe, shape, field):
    wrong = [*NEVER, -1]
    assert [value for value in wrong if accepts(probe, shape(value))] == FREE.get(field, [])


@pytest.mark.parametrize("value", [math.inf, math.nan, 1e300, [1.0, math.inf]])
def test_further_arguments_of_an_optimizer_are_finite(value):
    with pytest.raises(ValidationError, match="expected finite numbers"):
        TimmOptimizer.model_validate({"name": "lamb", "lr": 0.1, "eps": value})
