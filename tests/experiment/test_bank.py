"""What a configuration may say of banks, which runs share one, and what that changes in digests."""

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.bank import bank_address, banks_of
from distillery.experiment.json_schema import schemas
from distillery.experiment.plan import make_plan
from distillery.reporting.measurements import needed_files
from distillery.results import write_sealed

RECIPE = "epochs: 5\nbatch: 4\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"
EXPERIMENT = """
one:
  dataset: few
  seeds: [0, 1]
  runs:
    big: {{model: cifar_resnet14, recipe: short, seeds: [0]}}
    other: {{model: cifar_resnet14, recipe: short, seeds: [0], clip_norm: 1.0}}
    live: {{model: cifar_resnet8, recipe: short, teacher: big, objective: {{kd: {{}}}}}}
    taught: {{model: cifar_resnet8, recipe: short, {keys}}}
    second: {{model: cifar_resnet20, recipe: short, {others}}}
"""
BANK = "teacher: {run: big, answers: bank}, objective: {kd: {}}"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/recipes").mkdir(parents=True)
    (tmp_path / "config/datasets.yaml").write_text("few: {path: data/few}\n")
    (tmp_path / "config/recipes/short.yaml").write_text(RECIPE)

    def load(keys=BANK, others=BANK):
        path = tmp_path / "config/one.yaml"
        path.write_text(EXPERIMENT.format(keys=keys, others=others))
        return load_experiment(path)

    return load


def test_a_block_that_says_nothing_new_changes_no_digest(load):
    experiment = load(
        "teacher: {run: big}, objective: {kd: {}}", "teacher: {run: big, answers: live}, objective: {kd: {}}"
    )
    assert experiment.teacher("taught") == "big"
    assert experiment.spec("taught").digest == experiment.spec("live").digest


def test_stored_answers_their_rows_and_crops_are_in_the_digest(load):
    keys = [
        "teacher: big, objective: {kd: {}}",
        BANK,
        BANK.replace("bank}", "bank, rows: float16}"),
        BANK.replace("bank}", "bank, rows: {top: 16}}"),
        BANK.replace("bank}", "bank, rows: {top: 8}}"),
        f"{BANK}, crops: 4",
        "teacher: big, objective: {kd: {}}, crops: 4",
    ]
    assert len({load(key).spec("taught").digest for key in keys}) == len(keys)
    written_out = BANK.replace("bank}", "bank, rows: float32}")
    assert load(written_out).spec("taught").digest == load().spec("taught").digest


def addresses(load, others, keys=BANK):
    experiment = load(keys, others)
    return [bank_address(experiment.spec(*member)) for member in (("taught", 0), ("taught", 1), ("second", 0))]


@pytest.mark.parametrize(
    "others",
    [
        BANK.replace("kd: {}", "ce: {}, kd: {temperature: 2}"),
        f"{BANK}, optimizer: {{lr: 0.3}}, clip_norm: 1.0, ema: {{decay: 0.9}}, selection: best",
        f"{BANK}, model_args: {{shortcut: projection}}",
    ],
)
def test_students_of_other_methods_networks_and_rates_share_a_bank(load, others):
    first, second_seed, other = addresses(load, others)
    assert other == first
    assert second_seed != first


@pytest.mark.parametrize(
    "others",
    [
        BANK.replace("big", "other"),
        BANK.replace("bank}", "bank, rows: float16}"),
        BANK.replace("kd: {}", "rkd: {}"),
        f"{BANK}, augment: [{{name: horizontal_flip}}]",
        f"{BANK}, preprocess: {{size: 16}}",
        f"{BANK}, precision: bf16-mixed",
        f"{BANK}, channels_last: true",
        f"{BANK}, repeats: 2",
        f"{BANK}, batch: 8",
        f"{BANK}, epochs: 6",
        f"{BANK}, drop_last: false",
        f"{BANK}, crops: 2",
        f"{BANK}, mix: {{mixup: 0.2}}",
        BANK.replace("kd: {}", "ce: {}, kd: {}") + ", labels: 3",
        BANK.replace("kd: {}", "bake: {}, kd: {}"),
    ],
)
def test_what_changes_an_answer_or_the_images_has_a_bank_of_its_own(load, others):
    first, _, other = addresses(load, others)
    assert other != first


def test_another_mix_has_another_bank(load):
    found = {addresses(load, f"{BANK}, mix: {{mixup: {alpha}}}")[2] for alpha in (0.2, 0.8)}
    assert len(found) == 2


def test_with_crops_seeds_orders_and_lengths_share_a_bank(load):
    crops = f"{BANK}, crops: 2"
    found = addresses(load, f"{crops}, epochs: 9, batch: 8, repeats: 2, drop_last: false", crops)
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("teacher: {run: bigg}, objective: {kd: {}}", "taught.teacher: no run 'bigg'; did you mean 'big'"),
        ("teacher: {answers: bank}, objective: {kd: {}}", "taught.teacher.run: missing; this key is required"),
        ("teacher: {run: big, answer: bank}, objective: {kd: {}}", "unknown key 'answer'; did you mean 'answers'"),
        ("teacher: {run: big, answers: stored}, objective: {kd: {}}", "'stored' is not valid; valid: bank, live"),
        (BANK.replace("bank}", "bank, rows: float64}"), "teacher.rows: 'float64' is not valid; did you mean 'float16'"),
        (BANK.replace("bank}", "bank, rows: {top: 0}}"), "teacher.rows.top: 0 is not valid"),
        (BANK.replace("bank}", "live, rows: float16}"), "`rows` says how a bank stores answers; add `answers: bank`"),
        (BANK.replace("kd: {}", "mgd: {}, kd: {}"), "taught.teacher.answers: 'mgd' learns from the teacher's stages"),
        (BANK.replace("kd: {}", "overhaul: {}"), "'overhaul' learns from the teacher's stages"),
        (f"{BANK}, teacher_norm: batch", "taught.teacher_norm: with `batch`, an answer depends on the other images"),
        (f"{BANK}, mix: {{mixup: 0.2}}, crops: 2", "taught.mix: with `crops`, a bank holds 2 views of each image"),
        (BANK.replace("bank}", "bank, rows: {top: 2}}").replace("kd", "rkd"), "top 2 holds logits alone, but 'rkd'"),
        (f"{BANK}, crops: 0", "taught.crops: 0 is not valid"),
    ],
)  # fmt: skip
def test_what_a_bank_cannot_do_gets_one_line(load, keys, line):
    with pytest.raises(UserError) as error:
        load(keys)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_plan_knows_the_bank_of_a_student_and_the_rule_of_its_teacher(load, tmp_path):
    experiment = load(BANK, f"{BANK}, crops: 2")
    plan = make_plan(tmp_path / "config", {"experiments": "one"}, needed_files)
    (folder,) = plan.bank("one", "taught", "1")
    assert folder == f"results/one/big/seed0/bank/{bank_address(experiment.spec('taught', 1))}"
    assert plan.bank("one", "second", "0") == plan.bank("one", "second", "1")
    assert plan.bank("one", "live", "0") == plan.bank("one", "big", "0") == []
    assert "one/big" in plan.pattern("teacher").replace("\\", "")
    assert "one/taught" not in plan.pattern("teacher").replace("\\", "")
    assert len(banks_of(experiment, "big")) == 3


def test_a_finished_student_asks_for_no_bank_and_a_planned_job_for_one_that_is_there(load, tmp_path):
    experiment = load()
    plan = make_plan(tmp_path / "config", {"experiments": "one"}, needed_files)
    (bank,) = plan.bank("one", "taught", "0")
    folder = tmp_path / "results/one/taught/seed0"
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").touch()
    write_sealed(folder / "run.json", {"digest": "of-before"})
    assert plan.bank("one", "taught", "0") == [bank]
    assert plan.bank("one", "taught", "0", planning=False) == []
    write_sealed(folder / "run.json", {"digest": experiment.spec("taught", 0).digest})
    assert plan.bank("one", "taught", "0") == []
    assert plan.bank("one", "taught", "1") != []
    (tmp_path / bank).mkdir(parents=True)
    assert plan.bank("one", "taught", "0", planning=False) == [bank]


def test_a_rehearsal_has_a_bank_too(load, tmp_path):
    load(f"{BANK}, crops: 3")
    plan = make_plan(tmp_path / "config", {"experiments": "one", "rehearsal": True}, needed_files)
    assert len(plan.bank("one", "taught", "0")) == 1


def test_editors_know_both_forms_of_a_teacher():
    teacher = schemas()["experiment"]["$defs"]["RunConfig"]["properties"]["teacher"]
    assert len(teacher["anyOf"]) == 3 or "oneOf" in str(teacher)
