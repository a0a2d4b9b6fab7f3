"""Runs by defaults and by combination, and grids over them."""

import json

import jsonschema
import pytest
import yaml

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.json_schema import schemas
from distillery.experiment.sweep import merged

RECIPE = """epochs: 6
batch: 16
optimizer: {name: sgd, lr: 0.05, weight_decay: 0.0001}
schedule: {name: step, drops: [2, 4]}
preprocess: {size: 16}
"""
PAGE = """page:
  dataset: images
  defaults: {recipe: r, optimizer: {lr: 0.1}}
  runs:
    big:   {model: cifar_resnet20}
    eight: {model: cifar_resnet8}
    given: {model: cifar_resnet8, weights: given.pth, preprocess: {size: 16}}
  sweep:
    pairs:
      over:
        student:
          eight:    {model: cifar_resnet8, teacher: big}
          fourteen: {model: cifar_resnet14, teacher: big, optimizer: {lr: 0.2}}
        method:
          kd:  {objective: {ce: {weight: 0.1}, kd: {weight: 0.9}}}
          dkd: {objective: {ce: {}, dkd: {beta: 8}}}
      but:
        fourteen-dkd: {objective: {dkd: {beta: 2}}, seeds: [7]}
        eight-dkd: null
  tables:
    all:
      grid:
        across: {ResNet-8: eight, ResNet-14: fourteen}
        down: {Teacher: [big, big], KD: "*-kd", DKD: "*-dkd"}
      columns: [top1]
"""


@pytest.fixture
def page(tmp_path):
    def load(old="", new=""):
        assert old in PAGE
        (tmp_path / "recipes").mkdir(exist_ok=True)
        (tmp_path / "recipes" / "r.yaml").write_text(RECIPE)
        (tmp_path / "datasets.yaml").write_text("images: {path: data, classes: 3}\n")
        (tmp_path / "page.yaml").write_text(PAGE.replace(old, new, 1))
        return load_experiment(tmp_path / "page.yaml")

    return load


def test_a_sweep_makes_every_combination_but_those_it_leaves_out(page):
    experiment = page()
    runs = experiment.config.runs
    assert list(runs) == ["big", "eight", "given", "eight-kd", "fourteen-kd", "fourteen-dkd"]
    assert (runs["fourteen-kd"].model, runs["fourteen-kd"].teacher) == ("cifar_resnet14", "big")
    assert runs["eight-kd"].objective.kd.weight == 0.9
    assert (runs["fourteen-dkd"].objective.dkd.beta, runs["fourteen-dkd"].objective.dkd.alpha) == (2, 1)
    assert experiment.seeds("fourteen-dkd") == (7,)


def test_defaults_lie_between_the_recipe_and_the_run(page):
    recipes = page().recipes
    rates = {run: recipe.optimizer.lr for run, recipe in recipes.items()}
    assert rates == {"big": 0.1, "eight": 0.1, "eight-kd": 0.1, "fourteen-kd": 0.2, "fourteen-dkd": 0.2}
    assert recipes["fourteen-kd"].optimizer.weight_decay == 0.0001


def test_a_run_of_a_sweep_is_the_run_that_is_written_out(page):
    swept = page().spec("eight-kd", 0).digest
    line = "{model: cifar_resnet8, teacher: big, objective: {ce: {weight: 0.1}, kd: {weight: 0.9}}}"
    assert page("    given:", f"    by-hand: {line}\n    given:").spec("by-hand", 0).digest == swept


def test_a_pattern_names_a_row_of_a_grid_and_leaves_gaps(page):
    grid = page().config.tables["all"].grid
    assert grid.across == ("ResNet-8", "ResNet-14")
    assert grid.down == {
        "Teacher": ("big", "big"), "KD": ("eight-kd", "fourteen-kd"), "DKD": (None, "fourteen-dkd")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("eight-dkd: null", "eight-dcd: null", "page.sweep.pairs.but: no run 'eight-dcd'; did you mean 'eight-dkd'"),
        ("    given:", "    eight-kd: {model: cifar_resnet8}\n    given:",
         "page.sweep.pairs: there is another run 'eight-kd' already; rename one"),
        ("beta: 2", "betta: 2", "page.runs.fourteen-dkd.objective.dkd.betta: unknown key 'betta'; did you mean 'beta'"),
        ("      but:", "      except:", "page.sweep.pairs.except: unknown key 'except'"),
        ("        method:", "        method: {}\n        kind:", "page.sweep.pairs.over.method: {} is not valid"),
        ("    pairs:", "    pairs: 3\n    more:", "page.sweep.pairs: 3 is not valid; expected a mapping"),
        ("teacher: big}", "teacher: bug}", "page.runs.eight-kd.teacher: no run 'bug'; did you mean 'big'"),
        ('"*-dkd"', '"*-dcd"', "page.tables.all.grid.down.DKD: no run is like '*-dcd'; did you mean"),
        ('"*-dkd"', '"eight-dkd"', "page.tables.all.grid.down.DKD: 'eight-dkd' is no list of runs; a pattern"),
        ("across: {ResNet-8: eight, ResNet-14: fourteen}", "across: [a, b]", "a pattern like '*-kd' needs a * and"),
        ("defaults: {recipe: r,", "defaults: {recipee: r,", "unknown key 'recipee'; did you mean 'recipe'"),
        ("defaults: {", "defaults: 3\n  other: {", "page.defaults: 3 is not valid"),
        ("  sweep:\n", "  sweep: 3\n  other:\n", "page.sweep: 3 is not valid"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_sweep_is_said_in_one_line(page, old, new, line):
    with pytest.raises(UserError) as raised:
        page(old, new)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_too_many_runs_are_refused_before_they_are_made(page):
    values = json.dumps({f"v{number}": {} for number in range(60)})
    with pytest.raises(UserError, match=r"pairs\.over: 864,000 runs are more than 10,000"):
        page("      over:\n", f"      over:\n        a: {values}\n        b: {values}\n        c: {values}\n")


def test_the_schema_for_editors_takes_such_a_page():
    validator = jsonschema.Draft202012Validator(schemas()["experiment"])
    assert validator.is_valid(yaml.safe_load(PAGE))
    assert not validator.is_valid(yaml.safe_load(PAGE.replace("but:", "except:")))


def test_mappings_are_merged_and_blocks_of_another_name_replaced():
    base = {"schedule": {"name": "step", "drops": [2]}, "optimizer": {"name": "sgd", "lr": 1}}
    over = {"schedule": {"name": "cosine"}, "optimizer": {"lr": 2}}
    assert merged(base, over) == {"schedule": {"name": "cosine"}, "optimizer": {"name": "sgd", "lr": 2}}
