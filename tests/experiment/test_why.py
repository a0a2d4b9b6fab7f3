"""What `distillery why` answers, on results with records of an older configuration."""

import json

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.why import describe, explain

ONE = """
one:
  dataset: few
  runs:
    big: {model: cifar_resnet14, recipe: short}
    small: {model: cifar_resnet8, recipe: short, seeds: [0, 1]}
    student: {model: cifar_resnet8, recipe: short, teacher: big, objective: {ce: {}, kd: {}}}
  tables:
    scores: {rows: [small], columns: [top1]}
    gains: {rows: [student], baseline: small, columns: [gain]}
"""
RECIPE = "epochs: 1\nbatch: 2\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "recipes").mkdir(parents=True)
    (tmp_path / "config" / "datasets.yaml").write_text("few: {path: data/few}\n")
    (tmp_path / "config" / "recipes" / "short.yaml").write_text(RECIPE)
    (tmp_path / "config" / "one.yaml").write_text(ONE)
    experiment = load_experiment(tmp_path / "config" / "one.yaml")
    for run, seed in experiment.members():
        folder, spec = tmp_path / "results" / "one" / run / f"seed{seed}", experiment.spec(run, seed)
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").touch()
        record = {"digest": spec.digest, "spec": spec.ledger, "manifest_digest": "m"}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "metrics.json").write_text(json.dumps({"digest": spec.digest}))
        profile = {"digest": experiment.spec(run).digest}
        (folder.parent / "profile.json").write_text(json.dumps(profile))
    manifest = tmp_path / "results" / "datasets" / "few" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"digest": "m"}))
    return tmp_path


def explained(place, target):
    config, results = (place.joinpath(name).relative_to(place) for name in ("config", "results"))
    return list(describe(explain(target, config, results), target, results))


def test_results_of_the_present_configuration_are_up_to_date(place):
    lines = explained(place, "results/one/student/seed0/metrics.json")
    assert [line.partition(":")[0] for line in lines] == ["results/one/student/seed0", "results/one/big/seed0"]
    assert all("up to date (digest " in line for line in lines)


def test_a_run_whose_tables_show_another_probe_is_probed_again(place):
    probes = place / "results/one/small/seed0/probes.json"
    digest = json.loads(probes.with_name("run.json").read_text())["digest"]
    probes.write_text(json.dumps({"digest": digest, "probing": 1, "knn": 50.0}))
    page = place / "config/one.yaml"
    page.write_text(ONE.replace("[top1]", "[top1, knn]"))
    assert "up to date" in explained(place, "results/one/small/seed0/probes.json")[0]
    page.write_text(ONE.replace("[top1]", "[top1, linear_probe, knn]"))
    assert explained(place, "results/one/small/seed0/probes.json")[1].strip() == "probes.json: knn -> knn, linear_probe"


def test_one_profile_counts_for_all_seeds_of_a_run(place):
    assert all("up to date" in line for line in explained(place, "one/small"))


def test_what_differs_is_named_key_by_key_also_above(place):
    (place / "config" / "one.yaml").write_text(ONE.replace("recipe: short}", "recipe: short, optimizer: {lr: 0.2}}", 1))
    assert explained(place, "one/student") == [
        "results/one/student/seed0: stale",
        "  teacher.recipe.optimizer.lr: 0.1 -> 0.2",
        "results/one/big/seed0: stale",
        "  recipe.optimizer.lr: 0.1 -> 0.2",
    ]


@pytest.mark.parametrize(
    ("target", "runs"),
    [
        ("results/tables/one/scores.md", {"small/seed0", "small/seed1"}),
        ("results/tables/one/gains.md", {"student/seed0", "small/seed0", "small/seed1", "big/seed0"}),
        ("results/tables/one.md", {"big/seed0", "small/seed0", "small/seed1", "student/seed0"}),
        ("results/figures/one", {"big/seed0", "small/seed0", "small/seed1", "student/seed0"}),
        ("config/one.yaml", {"big/seed0", "small/seed0", "small/seed1", "student/seed0"}),
        ("one/small/seed1", {"small/seed1"}),
        ("results/one/big/profile.json", {"big/seed0"}),
    ],
)
def test_targets(place, target, runs):
    lines = [line for line in explained(place, target) if line.startswith("results/")]
    assert {line.partition(":")[0].removeprefix("results/one/") for line in lines} == runs


def test_other_images_another_measurement_and_missing_results_are_named(place):
    (place / "results/datasets/few/manifest.json").write_text(json.dumps({"digest": "n"}))
    (place / "results/one/big/seed0/metrics.json").write_text(json.dumps({"digest": "old"}))
    (place / "results/one/small/seed0/weights.safetensors").unlink()
    assert explained(place, "one/big")[1:] == [
        "  images of few: m -> n",
        f"  metrics.json: digest: old -> {load_experiment(place / 'config' / 'one.yaml').spec('big').digest}",
    ]
    assert explained(place, "one/small/seed0") == ["results/one/small/seed0: not made yet"]


def test_another_way_of_measuring_and_another_line_of_the_data_set_are_named(place):
    metrics = place / "results/one/big/seed0/metrics.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"evaluation": "0 of top1"}))
    (place / "config/datasets.yaml").write_text("few: {path: data/few, holdout: 0.25}\n")
    lines = explained(place, "one/big")
    assert "  images.holdout: null -> 0.25" in lines
    assert any(line.startswith("  metrics.json: evaluation: 0 of top1 -> 1 of ") for line in lines)


@pytest.mark.parametrize(
    "target", ["results/tables/one/score.md", "two/small", "one/smal", "one/small/seed7", "", "results/datasets/few"]
)
def test_what_is_no_target_is_refused(place, target):
    with pytest.raises(UserError):
        explained(place, target)
