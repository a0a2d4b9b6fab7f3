"""What terms declare: needs, weights, and hooks that resolving, building and rehearsing call without knowing them."""

import json
from pathlib import Path
from typing import ClassVar

import pytest

from distillery.errors import UserError
from distillery.experiment.schema.objective import TERMS, Kind, Needs, Objective, Sampling, TermOptions
from distillery.experiment.schema.recipe import Recipe

RECIPE = {
    "epochs": 1,
    "batch": 8,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "constant"},
    "preprocess": {"size": 8},
}


def objective(**terms):
    return Objective.model_validate(terms)


@pytest.mark.parametrize("options", TERMS.values(), ids=TERMS)
def test_every_term_says_what_it_needs_and_where_it_lies(options):
    assert options.needs.student
    assert options.needs.student | options.needs.teacher <= set(Kind.__args__)
    module, _, name = options.implementation.partition(":")
    assert module.startswith("distillery.distill.losses.")
    assert name
    assert options.numerics >= 1


@pytest.mark.parametrize(("page", "row"), [("docs/methods.md", "| `{}` | "), ("config/README.md", "| `{}` | | ")])
def test_every_term_has_a_row_on_the_pages(page, row):
    text = (Path(__file__).parents[2] / page).read_text()
    assert [name for name in TERMS if "\n" + row.format(name) not in text] == []


def test_an_objective_needs_what_its_terms_need_together():
    needs = objective(ce={}, bake={}, crd={}).needs()
    assert needs == Needs(student={"logits", "embedding"}, teacher={"embedding"}, indices=True, labels=True)
    assert objective(kd={}).needs() == Needs(student={"logits"}, teacher={"logits"})


def test_the_terms_say_how_the_teacher_normalises_by_default():
    assert objective(kd={}, overhaul={}).default_teacher_norm() == "batch"
    assert objective(kd={}, mgd={}).default_teacher_norm() == "eval"


def test_partners_want_an_order_of_their_own():
    assert objective(ce={}, bake={"partners": 3}).sampling() == Sampling("partners", {"partners": 3})
    assert objective(ce={}, bake={"partners": 0}).sampling() is None
    assert objective(kd={}).sampling() is None


@pytest.mark.parametrize(
    ("terms", "recipe", "message"),
    [
        ({"bake": {"partners": 2}}, {}, "batch: 8 is no multiple of 3, an image and its 2 partners"),
        ({"bake": {}}, {"repeats": 3}, "repeats: 3 cannot go with BAKE's partners; set repeats: 1 or partners: 0"),
        ({"bake": {"partners": 0}}, {"repeats": 3}, None),
        ({"crd": {}}, {"mix": {"mixup": 0.8}}, "mix: crd looks at single images and cannot learn from mixed ones; "),
        ({"rkd": {}}, {"mix": {"mixup": 0.8}}, None),
        ({"pskd": {}}, {"mix": {"mixup": 0.8}}, "mix: pskd looks at single images and cannot learn from mixed ones; "),
        ({"cskd": {}}, {"mix": {"mixup": 0.8}}, "mix: cskd looks at single images and cannot learn from mixed ones; "),
        ({"mlkd": {}}, {"mix": {"mixup": 0.8}, "augment_view": [{"name": "fixmatch"}]}, None),
        ({"mlkd": {}, "cskd": {}}, {}, "objective: mlkd and cskd each want a second image of their own; leave one out"),
        ({"kd": {}}, {"augment_view": []}, "augment_view: no term of the objective compares two views of an image; "),
    ],
)
def test_terms_check_the_recipe(terms, recipe, message):
    recipe = Recipe.model_validate(RECIPE | recipe)
    if message is None:
        objective(**terms).check(recipe)
        return
    with pytest.raises(UserError) as raised:
        objective(**terms).check(recipe)
    assert str(raised.value).startswith(message)


def test_large_memories_are_said(tmp_path):
    from distillery.experiment import load_experiment
    from distillery.experiment.checks import large_memories

    (tmp_path / "config" / "recipes").mkdir(parents=True)
    files = {
        "recipes/plain.yaml": RECIPE,
        "datasets.yaml": {"many": {"path": "data", "classes": 1000, "images": {"train": 1_281_167}}},
        "big.yaml": {
            "big": {
                "dataset": "many",
                "seeds": [0],
                "runs": {
                    "teacher": {"model": "cifar_resnet8", "recipe": "plain"},
                    "refined": {"model": "cifar_resnet8", "recipe": "plain", "objective": {"pskd": {}}},
                    "contrast": {
                        "model": "cifar_resnet8",
                        "recipe": "plain",
                        "teacher": "teacher",
                        "objective": {"ce": {}, "crd": {}},
                    },
                    "little": {
                        "model": "cifar_resnet8",
                        "recipe": "plain",
                        "teacher": "teacher",
                        "objective": {"ce": {}, "crd": {"features": 64}},
                    },
                },
                "tables": {},
            }
        },
    }
    for name, content in files.items():
        (tmp_path / "config" / name).write_text(json.dumps(content))
    assert large_memories(load_experiment(tmp_path / "config" / "big.yaml")) == [
        "refined: pskd remembers 5.1 GB about 1,281,167 images, in each process and each checkpoint",
        "contrast: crd remembers 1.3 GB about 1,281,167 images, in each process and each checkpoint",
    ]


def test_a_learned_temperature_is_the_same_by_word_and_by_settings():
    word, settings = (objective(kd={"temperature": value}) for value in ("learned", {"name": "learned"}))
    assert word == settings
    assert objective(kd={"temperature": {"name": "learned", "span": 5}}) != word


def test_two_terms_cannot_each_order_the_images_or_replace_the_last_layer(monkeypatch):
    monkeypatch.setattr(TERMS["kd"], "sampling", lambda self: Sampling("partners", {"partners": 2}))
    with pytest.raises(UserError, match=r"^objective: kd and bake each want an order of images of their own"):
        objective(kd={}, bake={"partners": 1}).check(Recipe.model_validate(RECIPE))
    objective(kd={}, bake={"partners": 0}).check(Recipe.model_validate(RECIPE))
    for name in ("ce", "mgd"):
        monkeypatch.setattr(TERMS[name], "head", "somewhere:Head")
    with pytest.raises(UserError, match=r"^objective: ce and mgd each replace the student's last layer"):
        objective(ce={}, mgd={}).check(Recipe.model_validate(RECIPE))


def test_a_term_of_a_few_lines_has_every_hook():
    class Options(TermOptions):
        needs: ClassVar[Needs] = Needs(student={"logits"})
        implementation: ClassVar[str] = "somewhere:Term"

    options = Options(weight={"value": 2, "warmup": 4})
    assert [options.weight_at(epoch) for epoch in (0, 1, 3, 100)] == [0.5, 1.0, 2.0, 2.0]
    late = Options(weight={"value": 2, "warmup": 4, "from_zero": True})
    assert [late.weight_at(epoch) for epoch in (0, 1, 4, 100)] == [0.0, 0.5, 2.0, 2.0]
    assert Options().weight_at(7) == 1.0
    assert options.sampling() is None
    assert (options.rehearsal_batch(8), options.variant(), options.default_teacher_norm) == (8, "", "eval")
