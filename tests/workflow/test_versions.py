"""What DVC records of an experiment, what it calls changed, and what it compares."""

import json
import re

import pytest
import yaml

pytestmark = pytest.mark.slow

EVERYTHING = ("--config", "experiments=tiny")
WEIGHTS = "results/tiny/small/seed0/weights.safetensors"
METRICS = "results/tiny/taught/seed0/metrics.json"


def changed_stages(checkout) -> set[str]:
    result = checkout.run("dvc", "status", "--json")
    assert result.returncode == 0, result.stdout
    return set(json.loads(result.stdout[result.stdout.index("{") :]))


def versions(checkout, *arguments: str):
    return checkout.run("python", "scripts/versions.py", *arguments)


# --- recording --------------------------------------------------------------------------------------------------------


def test_nothing_to_do_for_both_after_recording(recorded):
    assert changed_stages(recorded) == set()
    assert recorded.planned(*EVERYTHING) == set()


def test_dvc_repro_makes_what_is_missing_and_records_a_sweep_without_training(recorded_copy):
    lock = recorded_copy.read("dvc.lock")
    (recorded_copy.folder / "dvc.lock").unlink()
    (recorded_copy.folder / "results/tables/tiny.md").unlink()
    result = recorded_copy.run("dvc", "repro")
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("Nothing to be done") == 1
    assert "assemble the tables of tiny" in result.stdout
    assert "train tiny/" not in result.stdout
    assert recorded_copy.read("dvc.lock") == lock
    assert recorded_copy.planned(*EVERYTHING) == set()
    assert recorded_copy.run("dvc", "status", "--quiet").returncode == 0


def test_a_failed_dvc_repro_leaves_what_is_there(recorded_copy):
    recorded_copy.replace("config/tiny.yaml", "teacher: big", "teacher: bug")
    result = recorded_copy.run("dvc", "repro")
    assert result.returncode != 0
    assert "no run 'bug'" in result.stdout
    assert (recorded_copy.folder / WEIGHTS).exists()


def test_only_what_is_up_to_date_is_recorded(recorded_copy):
    lock = recorded_copy.read("dvc.lock")
    (recorded_copy.folder / METRICS).unlink()
    result = versions(recorded_copy, "record", "tiny")
    assert result.returncode == 2
    line = r"distillery: not up to date, to do: .+ and 1 more; first snakemake .+=tiny\n"
    assert re.fullmatch(line, result.stdout)
    assert recorded_copy.read("dvc.lock") == lock


def test_an_experiment_that_dvc_does_not_know(recorded_copy):
    """`make demo` records whatever it made; `save` and `restore` say what is missing."""
    recorded_copy.write(
        "config/later.yaml",
        "later:\n  dataset: tiny\n  runs:\n    first: {model: cifar_resnet14, weights: 'run:tiny/big'}\n",
    )
    assert versions(recorded_copy, "record", "later").returncode == 0
    recorded_copy.run("dvc", "remote", "add", "--default", "store", "nowhere")
    refused = versions(recorded_copy, "save", "later")
    assert refused.returncode == 2
    assert refused.stdout == (
        "distillery: dvc.yaml: stages.experiment.foreach: DVC does not know later; write the line `later: tiny`\n"
    )
    recorded_copy.replace("dvc.yaml", "tiny: tiny\n", "tiny: tiny\n      later: tiny\n")
    result = versions(recorded_copy, "record", "later")
    assert re.match(r"distillery: not up to date, to do: .+ and 3 more; first snakemake .+=later,tiny\n", result.stdout)
    stages = yaml.safe_load(recorded_copy.read("dvc.lock"))["stages"]
    assert set(stages) == {"dataset@tiny", "experiment@tiny"}


# --- changes ----------------------------------------------------------------------------------------------------------


def test_an_edited_run_is_named_by_its_key(recorded_copy):
    recorded_copy.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert changed_stages(recorded_copy) == {"experiment@tiny"}
    difference = recorded_copy.run("dvc", "params", "diff").stdout.splitlines()
    assert len(difference) == 2
    assert re.match(r"config/tiny.yaml +tiny.runs.taught.objective.kd.temperature +- +2", difference[1])


def test_other_raw_images_concern_the_data_set_first(recorded_copy):
    next((recorded_copy.folder / "data" / "tiny" / "train").rglob("*.png")).unlink()
    assert recorded_copy.run("dvc", "add", "--quiet", "data").returncode == 0
    assert changed_stages(recorded_copy) == {"dataset@tiny"}
    assert "prepare data set tiny" in recorded_copy.planned(*EVERYTHING)


def test_code_concerns_no_stage(recorded_copy):
    recorded_copy.append("src/distillery/training/loop.py", "\n# Edited.\n")
    assert changed_stages(recorded_copy) == set()


def test_metrics_are_compared_run_by_run(recorded_copy):
    metrics = json.loads(recorded_copy.read(METRICS))
    recorded_copy.write(METRICS, json.dumps(metrics | {"top1": metrics["top1"] + 1}))
    (difference,) = re.findall(r"^{.+}$", recorded_copy.run("dvc", "metrics", "diff", "--json").stdout, re.MULTILINE)
    assert json.loads(difference)[METRICS] == {"top1": {"old": 75.0, "new": 76.0, "diff": 1.0}}
    # As docs/versioning.md recommends it: metrics.json alone.
    shown = recorded_copy.run("bash", "-c", "dvc metrics diff --targets results/tiny/*/*/metrics.json").stdout
    assert re.search(rf"{METRICS} +top1 +75.0 +76.0 +1.0\n", shown)
    assert len(shown.splitlines()) == 2
