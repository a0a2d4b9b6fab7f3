"""A rehearsal keeps every run, network and objective of an experiment, and shrinks the rest."""

import pytest

from distillery.experiment import load_experiment, load_experiments
from distillery.experiment.rehearsal import BATCH, EPOCHS, LEARNING_RATE, SIZE, family, rehearsed, representatives
from distillery.experiment.schema.experiment import RunConfig
from distillery.experiment.schema.recipe import Recipe

EXPERIMENT = """
big:
  dataset: photos
  seeds: [3, 4]
  runs:
    imported: {model: resnet18, weights: "torchvision:IMAGENET1K_V1", preprocess: {size: 224, resize: 256}}
    stored: {model: resnet18, weights: /nowhere/at/all.pth}
    plain: {model: resnet18, recipe: usual}
    taught: {model: mobilenetv3_small_050, recipe: usual, batch: 256, teacher: imported, seeds: [5],
             objective: {ce: {}, mgd: {reducer: sm, update_every: 2}}}
    baked: {model: resnet18, recipe: usual, batch: 96, objective: {ce: {}, bake: {partners: 2}}}
    tuned: {model: resnet18, recipe: usual, weights: "run:plain"}
    started: {model: resnet18, recipe: usual, weights: "timm:a1_in1k", new_classifier: true}
    borrowed: {model: resnet18, weights: "run:plain"}
  tables:
    all: {rows: [imported, plain, taught], columns: [top1, params]}
"""
RECIPE = """
epochs: 90
batch: 256
optimizer: {name: sgd, lr: 0.1, weight_decay: 1.0e-4}
schedule: {name: step, drops: [30, 60], warmup: {name: ratio, epochs: 5}}
preprocess: {size: 224, resize: 256, normalize: imagenet}
augment:
  - {name: random_resized_crop}
precision: 16-mixed
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "config" / "recipes").mkdir(parents=True)
    (tmp_path / "config" / "big.yaml").write_text(EXPERIMENT)
    (tmp_path / "config" / "recipes" / "usual.yaml").write_text(RECIPE)
    (tmp_path / "config" / "datasets.yaml").write_text("photos: {path: data/photos, classes: 77}\n")
    return load_experiment(tmp_path / "config" / "big.yaml")


@pytest.fixture
def small(experiment):
    return load_experiment(experiment.path, rehearsal=True)


def test_every_run_with_its_network_and_objective(experiment, small):
    assert [run for run in small.config.runs if not run.startswith("stand-in")] == list(experiment.config.runs)
    for run, line in experiment.config.runs.items():
        rehearsal = small.config.runs[run]
        assert (rehearsal.model, rehearsal.objective, rehearsal.teacher) == (line.model, line.objective, line.teacher)
        assert small.seeds(run) == (0,)
    assert small.config.tables == experiment.config.tables
    assert small.dataset.generated.classes == 77


def test_recipes_keep_their_parts_and_last_a_few_steps(small):
    recipe = small.recipes["plain"]
    assert (recipe.epochs, recipe.batch, recipe.optimizer.lr) == (EPOCHS, BATCH, LEARNING_RATE)
    assert (recipe.preprocess.size, recipe.preprocess.resize, recipe.preprocess.normalize) == (SIZE, 73, "imagenet")
    assert (recipe.schedule.name, recipe.schedule.drops, recipe.schedule.warmup.epochs) == ("step", (1,), 1)
    assert [step.name for step in recipe.augment] == ["random_resized_crop"]
    assert recipe.precision == "bf16-mixed"
    assert small.recipes["baked"].batch % 3 == 0


def test_what_is_not_there_is_trained_instead_and_runs_stay_linked(small):
    runs = small.config.runs
    for run in ("imported", "stored"):
        assert runs[run].weights is None
        assert run in small.recipes
    assert small.recipes["imported"].preprocess.size == SIZE
    assert runs["started"].new_classifier
    (stand_in,) = [run for run in runs if run.startswith("stand-in")]
    assert runs["started"].weights == f"run:{stand_in}"
    assert (runs[stand_in].model, runs[stand_in].weights) == ("resnet18", None)
    assert runs["tuned"].weights == runs["borrowed"].weights == "run:plain"
    assert "borrowed" not in small.recipes


def test_linked_experiments_are_rehearsed_too(experiment):
    experiment.path.with_name("other.yaml").write_text(
        "other: {dataset: photos, runs: {copy: {model: resnet18, weights: 'run:big/plain'}}}\n"
    )
    other, _ = load_experiment(experiment.path.with_name("other.yaml"), rehearsal=True).origin("copy")
    assert other.recipes["plain"].epochs == EPOCHS


def test_every_experiment_of_this_repository_can_be_rehearsed(request):
    for name, experiment in load_experiments(request.config.rootpath / "config").items():
        small = rehearsed(experiment)
        assert set(small.config.runs) >= set(experiment.config.runs), name
        assert {recipe.epochs for recipe in small.recipes.values()} == {EPOCHS}
        for run in small.config.runs:
            assert isinstance(small.config.runs[run], RunConfig)
            assert small.spec(run).recipe is None or isinstance(small.spec(run).recipe, Recipe)


def test_representatives_have_every_recipe_teacher_and_start_between_them(request):
    experiments = load_experiments(request.config.rootpath / "config")
    lines = {
        (experiment.name, run): experiment.config.runs[run]
        for experiment in experiments.values()
        for run in experiment.trained()
    }

    def kinds(runs):
        banks = {run: "answers='bank'" in str(lines[run].teacher) for run in runs}
        return {(lines[run].recipe, lines[run].teacher is None, banks[run]) for run in runs}

    chosen = representatives(experiments.values())
    assert kinds(chosen) == kinds(lines)
    assert {lines[run].weights is None for run in chosen} == {True, False}
    assert len(chosen) < len(lines) / 10


@pytest.mark.parametrize(
    ("model", "expected"),
    [("torchvision:resnet50", "resnet"), ("cifar_resnet20", "cifar_resnet"), ("tf_efficientnet_b0", "efficientnet"),
     ("mgd_mobilenet_v2", "mgd_mobilenet_v2"), ("mobilenet_v1", "mobilenet_v1"), ("levit_384", "levit"),
     ("levit_768", "levit")],
)  # fmt: skip
def test_a_name_has_a_family(model, expected):
    assert family(model) == expected


def test_giants_see_a_few_whole_patches_and_get_a_classifier_to_train(experiment):
    text = experiment.path.read_text().replace(
        "  tables:",
        '    giant: {model: vit_small_patch14_dinov2, weights: "timm:lvd142m", classes: none, '
        "model_args: {img_size: 224}, preprocess: {size: 224}}\n"
        '    again: {model: vit_small_patch14_dinov2, weights: "run:giant", model_args: {img_size: 224}, '
        "preprocess: {size: 224, resize: 256}}\n"
        '    clip: {model: vit_base_patch16_clip_224, weights: "timm:openai", classes: none}\n'
        '    levit: {model: "timm:levit_384", weights: "timm:fb_dist_in1k"}\n'
        '    known: {model: resnet18, weights: "run:plain", classes: names}\n'
        "    by: {model: resnet18, recipe: usual, teacher: giant, labels: {list: nowhere.txt}, "
        "objective: {ce: {}, rkd: {}}}\n  tables:",
    )
    experiment.path.write_text(text)
    small = load_experiment(experiment.path, rehearsal=True)
    assert [small.recipes[run].preprocess.size for run in ("giant", "clip", "levit")] == [56, 224, 224]
    assert (small.preprocesses["again"].size, small.preprocesses["again"].resize) == (56, 64)
    assert small.config.runs["giant"].model_args == small.config.runs["again"].model_args == {"img_size": 56}
    assert (small.config.runs["giant"].classes, small.config.runs["known"].classes) == (None, "names")
    assert small.labels("by").labels == BATCH
