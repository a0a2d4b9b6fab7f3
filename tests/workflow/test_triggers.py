"""What is made again after a change, on an experiment that Snakemake really made: no less, and no more."""

import base64
import json
import os
import re
import shutil

import pytest
import yaml

pytestmark = pytest.mark.slow

TARGETS = ("results/tables/tiny.md", "results/figures/tiny")
EVERYTHING = ("--config", "experiments=tiny")
EXPERIMENT = {"assemble the tables of tiny", "draw the figures of tiny"}
TEACHER = "train tiny/big, seed 0, a teacher"


def remade(*runs: str) -> set[str]:
    """All that belongs to some runs, and the experiment."""
    train = {TEACHER if run == "big" else f"train tiny/{run}, seed 0" for run in runs}
    return train | measured(*runs) | {f"profile tiny/{run}" for run in runs} | EXPERIMENT


def measured(*runs: str) -> set[str]:
    return {f"evaluate tiny/{run}, seed 0" for run in runs}


def test_nothing_changed(made):
    assert made.planned(*TARGETS) == set()


def test_a_deleted_run_is_made_again_by_asking_for_its_experiment(made):
    shutil.rmtree(made.folder / "results" / "tiny" / "taught")
    assert made.planned(*EVERYTHING) == remade("taught")


def test_machine_changes_retrain_nothing(made):
    assert made.planned(*TARGETS, "--cores", "7") == set()
    assert made.planned(*TARGETS, "--profile", "slurm") == set()
    more = ["train_student:gpus_per_node=8", "train_student:nodes=2", "train_teacher:workers=9"]
    assert made.planned(*TARGETS, "--set-resources", *more) == set()
    assert made.planned(*TARGETS, "--set-threads", "train_student=4") == set()


def test_layout_of_the_yaml_retrains_nothing(made):
    experiment = yaml.safe_load(made.read("config/tiny.yaml"))
    experiment["tiny"]["runs"] = dict(reversed(experiment["tiny"]["runs"].items()))
    experiment["tiny"]["runs"]["small"]["objective"] = {"ce": {"label_smoothing": 0.0}}
    made.write("config/tiny.yaml", "# A comment.\n" + yaml.safe_dump(experiment, indent=8, sort_keys=False))
    made.append("config/recipes/tiny.yaml", "# Another.\nchannels_last: false\n")
    made.append("config/datasets.yaml", "unused: {path: data/unused}\n")
    assert made.planned(*TARGETS) == set()


def test_a_run_of_its_own_remakes_itself_and_the_experiment(made):
    made.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert made.planned(*TARGETS) == remade("taught")


def test_a_teacher_remakes_what_learns_from_it(made):
    made.replace("config/tiny.yaml", "cifar_resnet14, recipe: tiny", "cifar_resnet14, recipe: tiny, epochs: 3")
    assert made.planned(*TARGETS) == remade("big", "taught")


def test_a_new_run_is_made_alone(made):
    made.replace(
        "config/tiny.yaml", "    small:", "    new: {model: cifar_resnet8, recipe: tiny, epochs: 1}\n    small:"
    )
    made.replace("config/tiny.yaml", "[big, small, taught]", "[big, small, taught, new]")
    assert made.planned(*TARGETS) == remade("new")


def test_a_table_is_laid_out_anew(made):
    made.replace("config/tiny.yaml", "[top1, nll,", "[top1,")
    assert made.planned(*TARGETS) == {"assemble the tables of tiny"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("distill/losses/kd.py", remade("taught")),
        ("distill/losses/cross_entropy.py", remade("big", "small", "taught")),
        ("distill/losses/mgd.py", set()),
        ("models/pretrained/rename.py", set()),
        ("models/zoo.py", set()),
        ("evaluation/metrics.py", measured("big", "small", "taught") | {"assemble the tables of tiny"}),
        ("reporting/tables.py", {"assemble the tables of tiny"}),
        ("reporting/figures.py", {"draw the figures of tiny"}),
        ("provenance.py", set()),
        ("cli.py", set()),
    ],
)
def test_code_remakes_what_was_made_with_it(made, source, expected):
    made.append(f"src/distillery/{source}", "\n# Edited.\n")
    assert made.planned(*TARGETS) == expected


def test_two_changes_at_once_are_both_seen(made):
    made.append("src/distillery/evaluation/metrics.py", "\n# Edited.\n")
    made.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert made.planned(*TARGETS) == remade("taught") | measured("big", "small")


def test_code_that_was_only_saved_again_remakes_nothing(made):
    for path in (made.folder / "src").rglob("*.py"):
        os.utime(path)
    assert made.planned(*TARGETS) == set()


def test_other_raw_images_remake_everything(made):
    made.append("data.dvc", "# Another version.\n")
    assert made.planned(*TARGETS) == remade("big", "small", "taught") | {"prepare data set tiny"}


@pytest.mark.parametrize("edited", ["config/tiny.yaml", "src/distillery/distill/losses/kd.py"])
def test_stale_table_is_noticed_after_a_failed_training(made, edited):
    """A failed job loses its outputs; nothing else would tell that the old metrics and table are no longer right."""
    if edited.endswith(".yaml"):
        made.replace(edited, "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    else:
        made.append(edited, "\n# Edited.\n")
    launcher = made.read("workflow/scripts/launch.sh")
    made.write("workflow/scripts/launch.sh", "exit 1\n")
    assert made.run("snakemake", "--cores", "1", *TARGETS).returncode == 1
    made.write("workflow/scripts/launch.sh", launcher)
    assert not (made.folder / "results/tiny/taught/seed0/weights.safetensors").exists()
    assert (made.folder / "results/tables/tiny.md").exists()
    assert made.planned(*TARGETS) == remade("taught")


def test_stale_table_is_noticed_after_a_failed_preparation(made):
    made.append("data.dvc", "# Another version.\n")
    shutil.rmtree(made.folder / "data" / "tiny")
    assert made.run("snakemake", "--cores", "1", *TARGETS).returncode == 1
    assert (made.folder / "results/tables/tiny.md").exists()
    assert made.planned(*TARGETS) == remade("big", "small", "taught") | {"prepare data set tiny"}


# --- the code that a job is made of, as noted by Snakemake, against what really was imported --------------------------

# Decides no result: see workflow/rules/sources.smk.
INDIFFERENT = re.compile(
    r"distillery|distillery\.(__main__|atomic|cli|errors|layout|config.*|provenance|training.(lock|logbook|slurm|stop))"
    r"|distillery\.(models.(registry|zoo)|objectives.terms|reporting)"
)


def noted_inputs(checkout, output: str) -> set[str]:
    name = base64.b64encode(output.encode()).decode()
    return set(json.loads((checkout.folder / ".snakemake" / "metadata" / name).read_text())["input"])


def imported(checkout, log: str) -> set[str]:
    return set(re.findall(r"\| +(distillery[\w.]*)$", checkout.read(log), flags=re.MULTILINE))


def source_files(checkout, modules: set[str]) -> set[str]:
    paths = [f"src/{module.replace('.', '/')}" for module in modules]
    candidates = {path for stem in paths for path in (f"{stem}.py", f"{stem}/__init__.py")}
    return {path for path in candidates if (checkout.folder / path).exists()}


@pytest.mark.parametrize(
    ("output", "log", "beside"),
    [
        ("results/datasets/tiny/manifest.json", "logs/datasets/tiny/prepare.log", ()),
        # Measuring its epochs decides nothing about a run, nor does reading others' weights about one from scratch.
        (
            "results/tiny/taught/seed0/weights.safetensors",
            "logs/tiny/taught/seed0/train.log",
            (
                "distillery.evaluation.metrics",
                *(f"distillery.models.{name}" for name in ("importing", "foreign", "namings", "published")),
            ),
        ),
        ("results/tiny/taught/seed0/metrics.json", "logs/tiny/taught/seed0/evaluate.log", ()),
        ("results/tiny/taught/profile.json", "logs/tiny/taught/profile.log", ()),
        ("results/tables/tiny.md", "logs/tiny/tables.log", ()),
        ("results/figures/tiny", "logs/tiny/figures.log", ()),
    ],
)
def test_every_imported_module_is_an_input(finished, output, log, beside):
    modules = {module for module in imported(finished, log) if not INDIFFERENT.fullmatch(module)}
    needed = source_files(finished, {module for module in modules if not module.startswith(beside)})
    assert needed
    assert needed - noted_inputs(finished, output) == set()


def test_a_term_of_an_objective_counts_for_its_runs(finished):
    inputs = noted_inputs(finished, "results/tiny/taught/seed0/weights.safetensors")
    terms = {path for path in inputs if path.startswith("src/distillery/objectives/")}
    assert {"src/distillery/distill/losses/kd.py", "src/distillery/distill/losses/cross_entropy.py"} <= terms
    assert not {"src/distillery/distill/losses/mgd.py", "src/distillery/distill/losses/bake.py"} & terms
