"""DVC and Snakemake know the same of every job; what is recorded, named, and left alone after a change."""

import base64
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

EVERYTHING = ("--config", "experiments=tiny")
TAUGHT = {"distil@taught-seed0", "compare@taught-seed0", "profile@taught"}
EXPERIMENT = {"tables", "figures"}


def changed_stages(checkout) -> set[str]:
    result = checkout.run("dvc", "status", "--json")
    assert result.returncode == 0, result.stdout
    return set(json.loads(result.stdout[result.stdout.index("{") :]))


def versions(checkout, *arguments: str):
    return checkout.run("python", "scripts/versions.py", *arguments)


# --- every stage against the job that Snakemake ran -------------------------------------------------------------------

OUTPUTS = {
    "prepare": "results/datasets/{name}/manifest.json",
    "train": "results/tiny/{run}/seed0/weights.safetensors",
    "distil": "results/tiny/{run}/seed0/weights.safetensors",
    "evaluate": "results/tiny/{run}/seed0/metrics.json",
    "compare": "results/tiny/{run}/seed0/metrics.json",
    "profile": "results/tiny/{run}/profile.json",
    "tables": "results/tables/tiny.md",
    "figures": "results/figures/tiny",
}
BLOCKS = {"train": "make", "distil": "make", "evaluate": "measure", "compare": "measure"}


def output_of(stage: str) -> str:
    group, _, name = stage.partition("@")
    return OUTPUTS[group].format(name=name, run=name.removesuffix("-seed0"))


def job_of(checkout, output: str) -> dict:
    """What Snakemake noted of the job that made a file."""
    name = base64.b64encode(output.encode()).decode()
    return json.loads((checkout.folder / ".snakemake" / "metadata" / name).read_text())


def recorded_stages(checkout) -> dict[str, dict]:
    stages = yaml.safe_load(checkout.read("dvc.lock"))["stages"]
    return {name: stage for name, stage in stages.items() if name != "lineage"}


def watched_files(stage: dict) -> set[str]:
    return {dep["path"] for dep in stage.get("deps", [])}


def made_inputs(checkout, job: dict) -> set[str]:
    return {path for path in job["input"] if path.startswith("results/")}


def fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def differences(checkout) -> list[str]:
    """Where a stage of DVC and the job of Snakemake that makes its output do not depend on the same things."""
    found = []
    for stage, record in recorded_stages(checkout).items():
        job = job_of(checkout, output_of(stage))
        made = made_inputs(checkout, job)
        if stage in EXPERIMENT:  # DVC watches the experiment's folder, for it has no lists
            made = {"results/tiny" if path.startswith("results/tiny/") else path for path in made}
        found += [f"{stage}: {path}" for path in watched_files(record) ^ made]

        group, _, name = stage.partition("@")
        lineage = json.loads(checkout.read("versions/tiny/lineage.json"))[BLOCKS.get(group, group)]
        lineage = lineage[name] if name else lineage
        (noted,) = record["params"]["versions/tiny/lineage.json"].values()
        if noted != lineage:
            found.append(f"{stage}: lineage")
        edited = {path for path in job["input"] if not path.startswith("results/")}
        contents = sorted((path, hashlib.sha256((checkout.folder / path).read_bytes()).hexdigest()) for path in edited)
        if fingerprint(contents) != noted["sources"]:
            found.append(f"{stage}: sources")
        if BLOCKS.get(group, group) in ("make", "measure", "profile") and repr(noted["params"]) not in job["params"]:
            found.append(f"{stage}: params")
    return found


def test_every_stage_depends_on_what_its_job_depends_on(recorded):
    stages = recorded_stages(recorded)
    assert set(stages) >= TAUGHT | EXPERIMENT | {"prepare@tiny", "train@big-seed0", "evaluate@big-seed0"}
    assert differences(recorded) == []


def test_what_dvc_forgets_is_found(recorded_copy):
    recorded_copy.replace("dvc.yaml", "        - ${item.teacher}/weights.safetensors\n", "")
    assert recorded_copy.run("dvc", "commit", "--force", "dvc.yaml").returncode == 0
    teacher = "results/tiny/big/seed0/weights.safetensors"
    assert set(differences(recorded_copy)) == {f"distil@taught-seed0: {teacher}", f"compare@taught-seed0: {teacher}"}


def test_what_snakemake_forgets_is_found(recorded_copy):
    recorded_copy.replace("workflow/rules/train.smk", '        teacher_record=of_teacher("run.json"),\n', "")
    recorded_copy.replace("workflow/rules/evaluate.smk", '        lineage=run_lineage("evaluation/profile.py"),\n', "")
    assert recorded_copy.run("snakemake", "--touch", "--forceall", "--cores", "1", *EVERYTHING).returncode == 0
    assert set(differences(recorded_copy)) == {
        "distil@taught-seed0: results/tiny/big/seed0/run.json",
        *(f"profile@{run}: sources" for run in ("big", "small", "taught")),
    }


def test_the_shipped_stages_are_those_of_the_shipped_experiment(fresh):
    before = fresh.read("versions/digits/jobs.json")
    result = versions(fresh, "lineage", "digits")
    assert result.returncode == 0, result.stdout
    assert fresh.read("versions/digits/jobs.json") == before


# --- recording --------------------------------------------------------------------------------------------------------


def test_a_sweep_is_recorded_without_training(recorded_copy):
    """`dvc repro` after snakemake: every stage asks Snakemake, which has nothing to do."""
    (recorded_copy.folder / "dvc.lock").unlink()
    weights = recorded_copy.folder / "results/tiny/small/seed0/weights.safetensors"
    before = weights.read_bytes()
    result = recorded_copy.run("dvc", "repro", "--single-item", "train@small-seed0")
    assert result.returncode == 0, result.stdout
    assert "Nothing to be done" in result.stdout
    assert set(recorded_stages(recorded_copy)) == {"train@small-seed0"}
    assert weights.read_bytes() == before


def test_nothing_to_do_for_both_after_recording(recorded):
    assert changed_stages(recorded) == set()
    assert recorded.planned(*EVERYTHING) == set()


def test_only_whole_experiments_are_recorded(recorded_copy):
    lock = recorded_copy.read("dvc.lock")
    (recorded_copy.folder / "results/tiny/taught/seed0/metrics.json").unlink()
    result = versions(recorded_copy, "record", "tiny")
    assert result.returncode == 2
    line = r"distillery: tiny: not up to date: .+ and \d more jobs to do; first snakemake .+\n"
    assert re.fullmatch(line, result.stdout)
    assert recorded_copy.read("dvc.lock") == lock


def test_leftovers_are_not_recorded(recorded_copy):
    shutil.copytree(recorded_copy.folder / "results/tiny/small", recorded_copy.folder / "results/tiny/smaller")
    result = versions(recorded_copy, "record", "tiny")
    assert result.returncode == 2
    assert result.stdout == (
        "distillery: results/tiny/smaller: belongs to no run of config/tiny.yaml; "
        "move it out of results/tiny, or delete it\n"
    )


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_students_temperature_concerns_the_student_alone(recorded_copy):
    recorded_copy.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert changed_stages(recorded_copy) == TAUGHT | EXPERIMENT | {"lineage"}
    assert recorded_copy.planned(*EVERYTHING) == {
        *("train tiny/taught, seed 0", "evaluate tiny/taught, seed 0", "profile tiny/taught"),
        *("assemble the tables of tiny", "draw the figures of tiny"),
    }
    assert "objective.kd.temperature" in recorded_copy.run("dvc", "params", "diff").stdout


def test_a_teachers_line_concerns_its_students(recorded_copy):
    recorded_copy.replace("config/tiny.yaml", "cifar_resnet14, recipe: tiny", "cifar_resnet14, recipe: tiny, epochs: 3")
    big = {"train@big-seed0", "evaluate@big-seed0", "profile@big"}
    assert changed_stages(recorded_copy) == big | {"distil@taught-seed0", "lineage"} | EXPERIMENT


def test_code_is_followed_to_the_runs_that_use_it(recorded_copy):
    """`lineage` is renewed in seconds; it then names the jobs, and nothing but them is stale."""
    for name in ("distill/losses/kd.py", "cli.py"):
        recorded_copy.append(f"src/distillery/{name}", "\n# Edited.\n")
    assert changed_stages(recorded_copy) == {"lineage"}
    assert recorded_copy.run("dvc", "repro", "lineage").returncode == 0
    assert changed_stages(recorded_copy) == TAUGHT | EXPERIMENT


def test_other_raw_images_concern_everything(recorded_copy):
    next((recorded_copy.folder / "data" / "tiny" / "train").rglob("*.png")).unlink()
    assert recorded_copy.run("dvc", "add", "--quiet", "data").returncode == 0
    assert changed_stages(recorded_copy) == {"lineage"}
    assert "prepare data set tiny" in recorded_copy.planned(*EVERYTHING)


def test_a_new_run_gets_its_stages(recorded_copy):
    recorded_copy.replace(
        "config/tiny.yaml", "    small:", "    new-0.1: {model: cifar_resnet8, recipe: tiny, epochs: 1}\n    small:"
    )
    stopped = recorded_copy.run("dvc", "repro")
    assert stopped.returncode != 0
    assert "its runs were changed, and with them the stages in dvc.yaml" in stopped.stdout
    assert "run dvc repro again" in stopped.stdout
    listed = recorded_copy.run("dvc", "stage", "list", "--name-only").stdout.split()
    assert {"train@new-0.1-seed0", "evaluate@new-0.1-seed0", "profile@new-0.1"} <= set(listed)


# --- other experiments, other kinds of runs ---------------------------------------------------------------------

KINDS = """
kinds-0.5:
  dataset: tiny
  runs:
    file: {model: cifar_resnet8, weights: file.pth, preprocess: {size: 8}}
    taken: {model: cifar_resnet14, weights: 'run:tiny/big'}
    tuned: {model: cifar_resnet8, recipe: tiny, weights: 'run:file'}
    both-a0.1: {model: cifar_resnet8, recipe: tiny, weights: 'run:file', teacher: taken, objective: {kd: {}}}
    loaded: {model: resnet18, weights: 'torchvision:IMAGENET1K_V1', preprocess: {size: 8}}
"""


def test_another_experiment_with_every_kind_of_run(recorded_copy):
    recorded_copy.write("config/kinds-0.5.yaml", KINDS)
    recorded_copy.write("file.pth", "")
    result = versions(recorded_copy, "track", "kinds-0.5")
    assert result.returncode == 0, result.stdout
    stages = recorded_copy.run("dvc", "stage", "list", "--name-only", "versions/kinds-0.5/dvc.yaml").stdout.split()
    assert {stage.rpartition(":")[2] for stage in stages} == {
        *("lineage", "tables", "figures"),
        *("adopt@file-seed0", "adopt@taken-seed0", "tune@tuned-seed0", "distil_tuned@both-a0.1-seed0"),
        "import@loaded-seed0",
        *(f"evaluate@{run}-seed0" for run in ("file", "taken", "tuned", "loaded")),
        "compare@both-a0.1-seed0",
        *(f"profile@{run}" for run in ("file", "taken", "tuned", "both-a0.1", "loaded")),
    }
    # Neither experiment's record is disturbed by the other, and the data set has one stage.
    assert recorded_copy.run("dvc", "status", "--quiet", "dvc.yaml").returncode in (0, 1)
    status = json.loads(recorded_copy.run("dvc", "status", "--json", "dvc.yaml").stdout)
    assert set(status) <= {"lineage"}
    graph = recorded_copy.run("dvc", "dag", "--dot", "versions/kinds-0.5/dvc.yaml:adopt@taken-seed0").stdout
    assert '"train@big-seed0" -> "versions/kinds-0.5/dvc.yaml:adopt@taken-seed0"' in graph


def test_a_experiment_follows_the_experiment_that_it_starts_from(recorded_copy):
    recorded_copy.write(
        "config/later.yaml",
        "later:\n  dataset: tiny\n  runs:\n    first: {model: cifar_resnet8, weights: 'run:digits/resnet8'}\n",
    )
    result = versions(recorded_copy, "track", "later")
    assert result.returncode == 2
    assert (
        result.stdout == "distillery: config/later.yaml: takes weights of digits; first make track EXPERIMENT=digits\n"
    )
    assert not (recorded_copy.folder / "versions" / "later").exists()


@pytest.mark.parametrize("experiment", ["", "tinny"])
def test_no_such_experiment(recorded, experiment):
    result = versions(recorded, "track", experiment)
    assert result.returncode == 2
    assert re.match(
        f"distillery: EXPERIMENT={experiment}: expected an experiment of config/; valid: .*digits, ", result.stdout
    )


# --- reading ----------------------------------------------------------------------------------------------------------


def test_metrics_and_plots_are_readable(recorded_copy):
    shown = json.loads(recorded_copy.run("dvc", "metrics", "show", "--json").stdout)
    metrics = shown[""]["data"]["results/tiny/taught/seed0/metrics.json"]["data"]
    measured = json.loads(recorded_copy.read("results/tiny/taught/seed0/metrics.json"))
    assert metrics == {name: value for name, value in measured.items() if value is not None}
    recorded_copy.write("results/tiny/taught/seed0/metrics.json", json.dumps(metrics | {"top1": metrics["top1"] + 1}))
    difference = recorded_copy.run("dvc", "metrics", "diff").stdout
    assert re.search(r"results/tiny/taught/seed0/metrics.json +top1 +75.0 +76.0 +1.0", difference)
    plots = recorded_copy.run("dvc", "plots", "show", "--out", "plots")
    assert plots.returncode == 0, plots.stdout
    experiment = Path(recorded_copy.folder, "plots", "index.html").read_text()
    assert "tiny/taught, seed 0: validation top-1 (%)" in experiment
