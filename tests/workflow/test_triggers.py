"""What is made again after a change, on an experiment that Snakemake really made: no less, and no more."""

import shutil

import pytest
import yaml

pytestmark = pytest.mark.slow

TARGETS = ("results/tables/tiny.md", "results/figures/tiny")
EVERYTHING = ("--config", "experiments=tiny")
EXPERIMENT = {"assemble the tables of tiny", "draw the figures of tiny"}
RUNS = ["big", "small", "taught"]
TEACHER = "train tiny/big, seed 0, a teacher"


def remade(*runs: str) -> set[str]:
    """All that belongs to some runs, and the experiment."""
    train = {TEACHER if run == "big" else f"train tiny/{run}, seed 0" for run in runs}
    return train | measured(*runs) | {f"profile tiny/{run}" for run in runs} | EXPERIMENT


def measured(*runs: str) -> set[str]:
    return {f"evaluate tiny/{run}, seed 0" for run in runs}


def test_nothing_changed(made):
    assert made.planned(*TARGETS) == set()


def test_evaluations_have_taken_what_trainings_measured(made):
    for run in RUNS:
        assert made.read(f"logs/tiny/{run}/seed0/evaluate.log").endswith("measured at the end of its training\n")
    assert not list(made.folder.glob("results/tiny/*/*/measured.json"))


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


def test_another_layout_of_a_table_remakes_the_tables_alone(made):
    made.replace("config/tiny.yaml", "[top1, nll,", "[top1,")
    assert made.planned(*TARGETS) == {"assemble the tables of tiny"}


def test_edits_of_code_and_of_the_text_of_rules_remake_nothing(made):
    for source in (
        "src/distillery/distill/losses/kd.py",
        "src/distillery/training/loop.py",
        "src/distillery/models/zoo/cifar_resnet.py",
        "src/distillery/evaluation/metrics.py",
        "src/distillery/data/prepare.py",
        "src/distillery/reporting/tables.py",
        "workflow/rules/train.smk",
    ):
        made.append(source, "\n# Edited.\n")
    made.replace("workflow/rules/train.smk", " --requeue > {log:q}", " --requeue --checkpoint-seconds 50 > {log:q}")
    assert made.planned(*EVERYTHING) == set()


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("schema/objective/logits.py", "temperature: Softening = 4.0", "temperature: Softening = 5.0", ["taught"]),
        ("zoo.py", "parameters, source, depth=depth)", "parameters, source, depth=depth, width=8)", RUNS),
        ("ledger.py", "ENGINE = 1", "ENGINE = 2", RUNS),
    ],
)
def test_a_change_of_what_is_computed_remakes_the_runs_that_it_touches(made, file, old, new, expected):
    made.replace(f"src/distillery/experiment/{file}", old, new)
    assert made.planned(*EVERYTHING) == remade(*expected)


def test_another_way_of_measuring_measures_again(made):
    made.replace("src/distillery/experiment/ledger.py", "EVALUATION = 1", "EVALUATION = 2")
    assert made.planned(*EVERYTHING) == measured(*RUNS) | {"assemble the tables of tiny"}


def test_another_way_of_preparing_remakes_everything(made):
    made.replace("src/distillery/experiment/ledger.py", "PREPARING = 1", "PREPARING = 2")
    assert made.planned(*EVERYTHING) == remade(*RUNS) | {"prepare data set tiny"}


def test_imported_weights_count_by_their_bytes_not_by_their_path(made):
    weights = made.folder / "weights" / "big.safetensors"
    weights.parent.mkdir()
    shutil.copy(made.folder / "results/tiny/big/seed0/weights.safetensors", weights)
    taken = "    taken: {model: cifar_resnet14, weights: weights/big.safetensors, preprocess: {size: 8}}\n"
    made.replace("config/tiny.yaml", "    taught:", f"{taken}    taught:")
    made.replace("config/tiny.yaml", "teacher: big", "teacher: taken")
    student = "results/tiny/taught/seed0/metrics.json"
    result = made.run("snakemake", "--cores", "1", student)
    assert result.returncode == 0, result.stdout
    weights = weights.rename(weights.with_name("moved.safetensors"))
    made.replace("config/tiny.yaml", "weights/big.safetensors", "weights/moved.safetensors")
    assert made.planned(student) == set()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    again = {"import tiny/taken", "train tiny/taught, seed 0", "evaluate tiny/taught, seed 0"}
    assert made.planned(student) == again


def test_a_broken_or_hidden_file_stops_no_other_experiment(made):
    made.write("config/half.yaml", "half:\n  runs: {a: {model: [")
    made.write("config/wrong.yaml", "wrong: {dataset: tiny, runs: {a: {model: cifar_resnet8, recipe: none}}}\n")
    (made.folder / "config" / "._tiny.yaml").write_bytes(b"\x00\x05\x16\x07")
    assert made.planned(*TARGETS) == set()
    result = made.run("snakemake", "--dry-run", "results/wrong/a/seed0/metrics.json")
    assert result.returncode == 1
    assert "distillery: config/wrong.yaml: wrong.runs.a.recipe: no file" in result.stdout.splitlines()[-1]


def test_two_changes_at_once_are_both_seen(made):
    made.replace("src/distillery/experiment/ledger.py", "EVALUATION = 1", "EVALUATION = 2")
    made.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    assert made.planned(*TARGETS) == remade("taught") | measured("big", "small")


def test_other_raw_images_remake_everything(made):
    made.append("data.dvc", "# Another version.\n")
    assert made.planned(*TARGETS) == remade("big", "small", "taught") | {"prepare data set tiny"}


def test_stale_table_is_noticed_after_a_failed_training(made):
    """A failed job loses its outputs; nothing else would tell that the old metrics and table are no longer right."""
    made.replace("config/tiny.yaml", "kd: {weight: 0.5}", "kd: {weight: 0.5, temperature: 2}")
    launcher = made.read("workflow/scripts/launch.sh")
    made.write("workflow/scripts/launch.sh", "exit 1\n")
    assert made.run("snakemake", "--cores", "1", *TARGETS).returncode == 1
    made.write("workflow/scripts/launch.sh", launcher)
    assert not (made.folder / "results/tiny/taught/seed0/weights.safetensors").exists()
    assert (made.folder / "results/tables/tiny.md").exists()
    assert made.planned(*TARGETS) == remade("taught")


def test_published_numbers_that_come_and_go_remake_the_tables(made):
    ledger = made.folder / "config/published/tiny.csv"
    ledger.write_text("run,metric,value,std,n,selection,source\nsmall,top1,90.0,,1,last,a paper\n")
    assert made.planned(*TARGETS) == {"assemble the tables of tiny"}
    assert made.run("snakemake", "--cores", "1", *TARGETS).returncode == 0
    ledger.unlink()
    assert made.planned(*TARGETS) == {"assemble the tables of tiny"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("data.dvc", "outs:", "# Another version.\nouts:"),
        ("config/datasets.yaml", "data/tiny}", "data/tiny, holdout: 0.3}"),
    ],
)
def test_stale_table_is_noticed_after_a_failed_preparation(made, file, old, new):
    made.replace(file, old, new)
    shutil.rmtree(made.folder / "data" / "tiny")
    assert made.run("snakemake", "--cores", "1", *TARGETS).returncode == 1
    assert (made.folder / "results/tables/tiny.md").exists()
    assert made.planned(*TARGETS) == remade("big", "small", "taught") | {"prepare data set tiny"}
