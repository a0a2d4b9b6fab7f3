"""`distillery plan`: what is left, what it costs, and whether that was measured or guessed."""

import json

import pytest

from distillery.cli import main
from distillery.experiment import load_experiment
from distillery.paths import log_folder, run_folder
from distillery.training import costs
from distillery.training.costs import costs_data, describe_costs, plan_costs, summary

MADE = {"device": "cpu", "processes": 1, "threads": 1}


def finish(workplace, run, seed=0, seconds=100.0, metrics=False, **session):
    """Results of a run that took so long: 4 steps of 8 images an epoch."""
    spec = load_experiment(workplace.experiment).spec(run, seed)
    manifest = json.loads((workplace.results / "datasets/tiny/manifest.json").read_text())
    folder = run_folder(workplace.results, "tiny", run, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"x")
    record = {
        "digest": spec.digest,
        "spec": spec.ledger,
        "manifest_digest": manifest["digest"],
        "effective": {"steps_per_epoch": 4, "batch": 8},
        "sessions": [MADE | {"seconds": seconds} | session],
    }
    (folder / "run.json").write_text(json.dumps(record))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps({"digest": spec.digest, "top1": 50.0}))


def benchmark(workplace, run, seed, job, seconds):
    folder = log_folder(workplace.results, "tiny", run, seed)
    path = (folder.parent if job == "profile" else folder) / f"{job}.benchmark.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"s": seconds}) + "\n")


def planned(workplace, **options):
    return plan_costs(load_experiment(workplace.experiment), workplace.results, **options)


def tasks(found, job="train"):
    return {task.of: task for task in found.tasks if task.job == job}


def test_a_page_of_which_nothing_is_made_is_guessed_and_says_so(workplace):
    found = planned(workplace, kind="gpu")
    assert {run: task.left for run, task in tasks(found).items()} == {"big": 1, "small": 2, "taught": 2}
    assert all(task.guess and "nothing was measured" in task.source for task in tasks(found).values())
    # data set, trainings, evaluations, profiles of three networks, table and figures; the data set is there.
    assert (found.jobs, found.left) == (1 + 5 + 5 + 3 + 2, 15)
    assert found.hours("gpu") == pytest.approx(found.hours("gpu", guessed=True))
    assert "GPU-hours (guessed)" in summary(found)


def test_other_seeds_of_a_run_say_what_it_takes(workplace):
    finish(workplace, "small", seed=0, seconds=100)
    small = tasks(planned(workplace))["small"]
    assert (small.left, small.seconds, small.guess) == (1, 100, False)
    assert small.source == "measured: tiny/small/seed0"


def test_a_job_that_was_never_stopped_counts_whole_with_its_start(workplace):
    finish(workplace, "small", seconds=100)
    benchmark(workplace, "small", 0, "train", 107)
    assert tasks(planned(workplace))["small"].seconds == 107


def test_a_run_like_it_is_scaled_by_epochs(workplace):
    finish(workplace, "small", seconds=100)
    workplace.edit("{model: cifar_resnet8, recipe: tiny}", "{model: cifar_resnet8, recipe: tiny, epochs: 6}")
    small = tasks(planned(workplace))["small"]
    images = 36 / 32  # the record says that an epoch had four whole batches
    assert (small.left, small.seconds, small.guess) == (2, pytest.approx(300 * images), False)
    assert small.source == "measured: tiny/small/seed0, by epochs and images"


def test_other_networks_are_guessed_by_their_operations(workplace):
    finish(workplace, "small", seconds=100)
    big = tasks(planned(workplace))["big"]
    assert big.guess
    assert big.source == "guessed by operations from tiny/small/seed0"
    assert big.seconds > 150


def test_a_network_that_is_far_larger_is_not_guessed_from_a_small_one(workplace):
    finish(workplace, "small", seconds=100)
    workplace.edit("big:    {model: cifar_resnet14,", "big:    {model: cifar_resnet14, model_args: {width: 200},")
    assert "nothing was measured" in tasks(planned(workplace))["big"].source


def test_profiles_say_more_than_operations(workplace):
    finish(workplace, "small", seconds=100)
    finish(workplace, "big", seconds=1)
    path = workplace.results / "tiny" / "big" / "profile.json"
    path.write_text(json.dumps({"input": [3, 8, 8], "gpu_throughput": None, "throughput": 10.0}))
    (workplace.results / "tiny/big/seed0/weights.safetensors").unlink()
    record = json.loads((workplace.results / "tiny/big/seed0/run.json").read_text())
    del record["sessions"]
    (workplace.results / "tiny/big/seed0/run.json").write_text(json.dumps(record))
    big = tasks(planned(workplace))["big"]
    assert big.source == "guessed from the forward speed in tiny/big/profile.json"
    assert big.seconds == pytest.approx(3 * 2 * 36 / 10)


def test_what_is_done_costs_nothing_and_what_is_stale_is_made_again(workplace):
    for run, seeds in {"big": [0], "small": [0, 1], "taught": [0, 1]}.items():
        for seed in seeds:
            finish(workplace, run, seed, metrics=True)
    found = planned(workplace)
    assert not tasks(found)
    assert not tasks(found, "evaluate")
    workplace.edit_recipe("clip_norm: 5")
    assert {run: task.left for run, task in tasks(planned(workplace)).items()} == {"big": 1, "small": 2, "taught": 2}


def test_a_network_that_is_trained_is_only_measured(workplace):
    finish(workplace, "big")
    benchmark(workplace, "small", 0, "evaluate", 5.0)
    found = planned(workplace)
    assert "big" not in tasks(found)
    big = tasks(found, "evaluate")["big"]
    assert (big.left, big.seconds, big.source) == (1, 5.0, "measured: the other runs")
    logs = workplace.folder / "logs"
    (logs / "tiny").rename(logs / "elsewhere")
    big = tasks(planned(workplace), "evaluate")["big"]
    assert (big.seconds, big.source, big.guess) == (5.0, "guessed from other experiments", True)


def test_hours_are_of_the_devices_that_the_last_run_took(workplace):
    finish(workplace, "small", seconds=3600, device="NVIDIA A40", processes=4)
    found = planned(workplace)
    assert (tasks(found)["small"].kind, tasks(found)["small"].hours) == ("gpu", 4)
    assert planned(workplace, kind="cpu").hours("gpu") == 0


def test_a_student_comes_after_its_teacher(workplace):
    finish(workplace, "small", seconds=100)
    found = planned(workplace)
    each = {run: task.seconds for run, task in tasks(found).items()}
    assert found.chain_seconds == pytest.approx(each["big"] + each["taught"])


def test_a_bank_takes_disk_and_a_job(workplace):
    workplace.edit("teacher: big,", "teacher: {run: big, answers: bank},")
    found = planned(workplace)
    assert next(task.of for task in found.tasks if task.job == "answer").startswith("big, bank ")
    assert found.bank_bytes > 0
    # Rows of three logits, and of these beside the 64 numbers of an embedding.
    workplace.edit("kd: {weight", "rkd: {}, kd: {weight")
    assert planned(workplace).bank_bytes - found.bank_bytes == 2 * 32 * 4 * 64 * 2


def test_images_that_nobody_has_counted_are_named(workplace):
    (workplace.results / "datasets/tiny/manifest.json").unlink()
    found = planned(workplace)
    assert any("tiny is not prepared" in note for note in found.notes)
    assert tasks(found, "prepare")["tiny"].guess


def test_records_without_times_and_damaged_ones_are_passed_over(workplace):
    finish(workplace, "small")
    path = workplace.results / "tiny/small/seed0/run.json"
    record = json.loads(path.read_text())
    for broken in ("{", json.dumps(record | {"sessions": [{}]}), json.dumps(record | {"spec": {}})):
        path.write_text(broken)
        assert list(costs.finished_runs(workplace.results)) == []


def test_the_command_says_it_in_words_and_in_json(workplace, capsys, monkeypatch):
    finish(workplace, "small", seconds=100)
    monkeypatch.chdir(workplace.folder)
    with pytest.raises(SystemExit):
        main(["plan", "config/tiny.yaml"])
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith("tiny: 14 of 16 jobs are left, about ")
    assert "| 0:01:40 | 0:01:40 CPU | measured: tiny/small/seed0" in said
    with pytest.raises(SystemExit):
        main(["plan", "--json"])
    (data,) = json.loads(capsys.readouterr().out)["experiments"]
    assert data["left"] == 14
    assert data["cpu_hours"] >= data["cpu_hours_guessed"] > 0
    assert describe_costs(planned(workplace)) + "\n" == said
    assert costs_data(planned(workplace))["jobs"] == 16


def test_a_broken_page_does_not_hide_the_others(workplace, capsys, monkeypatch):
    (workplace.folder / "config/other.yaml").write_text("other: [")
    monkeypatch.chdir(workplace.folder)
    with pytest.raises(SystemExit) as end:
        main(["plan"])
    said = capsys.readouterr()
    assert end.value.code in (0, None)
    assert said.err.startswith("distillery: config/other.yaml:")
    assert said.out.startswith("tiny: ")


def test_several_teachers_take_their_time(workplace):
    one = plan_costs(load_experiment(workplace.experiment), workplace.results, "cpu")
    workplace.edit("teacher: big,", "teacher: [big, small],")
    several = plan_costs(load_experiment(workplace.experiment), workplace.results, "cpu")
    assert tasks(several)["taught"].seconds > tasks(one)["taught"].seconds
