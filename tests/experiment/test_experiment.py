"""The experiment as a whole: names, merging, digests, and the one line that each mistake gets."""

import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distillery.errors import UserError
from distillery.experiment import load_experiment, load_experiments

ROOT = Path(__file__).parents[2]


# What an experiment may look like; the repository's own experiments are free to change.
EXPERIMENT = """# yaml-language-server: $schema=../workflow/schemas/experiment.schema.json
# An experiment.
digits:
  dataset: digits
  seeds: [0, 1, 2]
  runs:
    resnet20:    {model: cifar_resnet20, recipe: digits, epochs: 30, seeds: [0]}
    resnet8:     {model: cifar_resnet8, recipe: digits}
    resnet8-kd:  {model: cifar_resnet8, recipe: digits, teacher: resnet20,
                  objective: {ce: {weight: 0.1}, kd: {weight: 0.9, temperature: 4}}}
  tables:
    methods:
      title: A ResNet-8 and its teacher
      rows: [resnet20, resnet8, resnet8-kd]
      columns: [top1, nll]
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "config/recipes").mkdir(parents=True)
    (tmp_path / "config/digits.yaml").write_text(EXPERIMENT)
    for name in ("datasets.yaml", "recipes/digits.yaml"):
        shutil.copy(ROOT / "config" / name, tmp_path / "config" / name)
    return tmp_path / "config"


def edit(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))
    return path


def digests(experiment):
    return {(run, seed): experiment.spec(run, seed).digest for run, seed in experiment.members()}


@pytest.mark.slow
def test_every_experiment_of_the_repository_loads_and_has_distinct_digests():
    for experiment in load_experiments(ROOT / "config").values():
        found = digests(experiment)
        assert found
        # The benchmark's tuned KD has KD's usual settings until it is tuned.
        distinct = {run: digest for run, digest in found.items() if run[0] != "kd-tuned"}
        assert len(set(distinct.values())) == len(distinct)


def test_digests_are_the_same_on_every_machine_and_in_every_release(config):
    # Changing these numbers retrains every user's runs; do it knowingly.
    (config / "frozen.yaml").write_text(
        "frozen:\n"
        "  dataset: digits\n"
        "  runs:\n"
        "    t: {model: cifar_resnet20, recipe: frozen}\n"
        "    s: {model: cifar_resnet8, recipe: frozen, teacher: t,\n"
        "        objective: {ce: {weight: 0.1}, kd: {temperature: 2}}}\n"
    )
    (config / "recipes" / "frozen.yaml").write_text(
        "epochs: 3\nbatch: 8\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"
    )
    experiment = load_experiment(config / "frozen.yaml")
    assert experiment.spec("t").digest == "7188403969c074da"
    assert experiment.spec("s").digest == "79adc5058001d41b"


def test_comments_order_and_spelt_out_defaults_change_no_digest(config):
    before = digests(load_experiment(config / "digits.yaml"))
    content = yaml.safe_load((config / "digits.yaml").read_text())
    body = content["digits"]
    body["runs"] = dict(reversed([(run, dict(reversed(line.items()))) for run, line in body["runs"].items()]))
    body["runs"]["resnet8"]["objective"] = {"ce": {"weight": 1, "label_smoothing": 0}}
    (config / "digits.yaml").write_text("# a comment\n" + yaml.safe_dump(content, sort_keys=False))
    assert digests(load_experiment(config / "digits.yaml")) == before


def test_renaming_runs_moves_no_digest(config):
    before = digests(load_experiment(config / "digits.yaml"))
    path = edit(config / "digits.yaml", "resnet8-kd", "taught", count=9)
    after = digests(load_experiment(path))
    assert {(run.replace("taught", "resnet8-kd"), seed): digest for (run, seed), digest in after.items()} == before


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("temperature: 4", "temperature: 3", {"resnet8-kd"}),
        ("weight: 0.9", "weight: 0.8", {"resnet8-kd"}),
        ("epochs: 30", "epochs: 2", {"resnet20", "resnet8-kd"}),
        (
            "{model: cifar_resnet8, recipe: digits}",
            "{model: cifar_resnet8, recipe: digits, optimizer: {lr: 0.3}}",
            {"resnet8"},
        ),
        ("title: A ResNet-8", "title: The ResNet-8", set()),
        ("columns: [top1,", "columns: [top5, top1,", set()),
    ],
)
def test_a_change_reaches_what_it_can_change_and_nothing_else(config, old, new, changed):
    before = digests(load_experiment(config / "digits.yaml"))
    after = digests(load_experiment(edit(config / "digits.yaml", old, new)))
    assert {run for (run, seed) in before if before[run, seed] != after[run, seed]} == changed


def test_a_change_of_the_recipe_reaches_every_run_that_uses_it(config):
    before = digests(load_experiment(config / "digits.yaml"))
    edit(config / "recipes/digits.yaml", "weight_decay: 5.0e-3", "weight_decay: 4.0e-4")
    after = digests(load_experiment(config / "digits.yaml"))
    assert all(before[member] != after[member] for member in before)


def test_another_seed_is_another_run_but_leaves_its_siblings_alone(config):
    before = digests(load_experiment(config / "digits.yaml"))
    after = digests(load_experiment(edit(config / "digits.yaml", "seeds: [0, 1, 2]", "seeds: [0, 1, 2, 7]")))
    assert set(after) - set(before) == {("resnet8", 7), ("resnet8-kd", 7)}
    assert all(after[member] == before[member] for member in before)


@given(lr=st.floats(1e-6, 10), epochs=st.integers(10, 500))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_equal_values_have_equal_digests_however_they_are_written(config, lr, epochs):
    (config / "digits.yaml").write_text(EXPERIMENT)
    line = "{model: cifar_resnet8, recipe: digits}"
    first = load_experiment(
        edit(config / "digits.yaml", line, f"{line[:-1]}, epochs: {epochs}, optimizer: {{lr: {lr:.17e}}}}}")
    )
    (config / "digits.yaml").write_text(EXPERIMENT)
    second = load_experiment(
        edit(config / "digits.yaml", line, f"{line[:-1]}, optimizer: {{lr: {lr:.60f}}}, epochs: {epochs}}}")
    )
    assert first.spec("resnet8", 0).digest == second.spec("resnet8", 0).digest


def test_a_teacher_is_the_first_seed_of_its_run(config):
    experiment = load_experiment(config / "digits.yaml")
    assert experiment.spec("resnet8-kd", 2).teacher == experiment.spec("resnet20", 0)


INITIAL = "{model: cifar_resnet8, recipe: digits, weights: 'run:resnet8'}"
FROM_OTHER = INITIAL.replace("run:resnet8", "run:other/base")


def test_resetting_classifier_std_to_null_gives_the_digest_of_a_recipe_without_it(config):
    before = digests(load_experiment(config / "digits.yaml"))
    recipe = config / "recipes" / "digits.yaml"
    recipe.write_text(f"{recipe.read_text()}classifier_std: 0.01\n")
    assert not set(before.values()) & set(digests(load_experiment(config / "digits.yaml")).values())
    for line in ("recipe: digits, epochs", "recipe: digits}", "recipe: digits, teacher"):
        edit(config / "digits.yaml", line, line.replace("digits", "digits, classifier_std: null"))
    assert digests(load_experiment(config / "digits.yaml")) == before


def test_initial_weights_are_part_of_what_decides_a_run(config):
    alone = load_experiment(config / "digits.yaml").spec("resnet8", 1)
    experiment = load_experiment(edit(config / "digits.yaml", "  tables:", f"    tuned: {INITIAL}\n  tables:"))
    tuned = experiment.spec("tuned", 1)
    assert tuned.initial == experiment.spec("resnet8", 0)
    assert tuned.weights is None
    assert tuned.model_copy(update={"initial": None}).digest == alone.digest != tuned.digest
    before = digests(experiment)
    after = digests(load_experiment(edit(config / "digits.yaml", "run:resnet8'", "run:resnet8', new_classifier: true")))
    assert {run for (run, _), digest in after.items() if digest not in before.values()} == {"tuned"}


@pytest.mark.parametrize(("optimizer", "concerned"), [("adamw", True), ("sgd", False)])
def test_networks_that_exempt_weights_by_patterns_have_an_integer_for_it(config, optimizer, concerned):
    edit(
        config / "digits.yaml",
        "model: cifar_resnet8",
        f"optimizer: {{name: {optimizer}, lr: 0.1}}, model: xcit_nano_12_p16_224",
    )
    experiment = load_experiment(config / "digits.yaml")
    assert ("decay_patterns" in experiment.spec("resnet8").ledger) is concerned
    assert "decay_patterns" not in experiment.spec("resnet20").ledger


def test_a_run_may_start_from_a_run_of_another_experiment(config):
    (config / "other.yaml").write_text(
        "other:\n  dataset: digits\n  runs:\n    base: {model: cifar_resnet8, recipe: digits, seeds: [3]}\n"
    )
    path = edit(config / "digits.yaml", "  tables:", f"    tuned: {FROM_OTHER}\n  tables:")
    experiment = load_experiment(path)
    other, run = experiment.origin("tuned")
    assert (other.name, run) == ("other", "base")
    assert experiment.spec("tuned").initial == load_experiment(config / "other.yaml").spec("base", 3)
    assert [(found.name, run) for found, run in experiment.family(["tuned"])] == [
        ("digits", "tuned"),
        ("other", "base"),
    ]
    experiments = load_experiments(config)
    assert experiments["digits"].origin("tuned")[0] is experiments["other"]


def test_experiments_may_not_descend_from_each_other_in_a_circle(config):
    (config / "other.yaml").write_text(
        "other:\n  dataset: digits\n  runs:\n"
        "    base: {model: cifar_resnet8, recipe: digits, weights: 'run:digits/tuned'}\n"
    )
    path = edit(config / "digits.yaml", "  tables:", f"    tuned: {FROM_OTHER}\n  tables:")
    with pytest.raises(UserError, match="digits/tuned <- other/base <- digits/tuned descend from each other"):
        load_experiment(path)


def test_an_override_that_renames_a_block_replaces_it_whole(config):
    line = "{model: cifar_resnet8, recipe: digits}"
    path = edit(config / "digits.yaml", line, f"{line[:-1]}, optimizer: {{name: adamw, lr: 0.001}}}}")
    optimizer = load_experiment(path).recipes["resnet8"].optimizer
    assert optimizer.name == "adamw"
    assert optimizer.weight_decay == 0.01


MISTAKES = [
    ("temperature: 4", "temprature: 4",
     "resnet8-kd.objective.kd.temprature: unknown key 'temprature'; did you mean 'temperature'?"),
    ("temperature: 4", "temperature: -4", "kd.temperature: -4 is not valid; input should be greater than 0"),
    ("temperature: 4", "temperature: hot", "kd.temperature: 'hot' is not valid"),
    ("kd: {", "kdd: {", "objective.kdd: unknown key 'kdd'; did you mean 'kd' or "),
    ("teacher: resnet20", "teacher: resnet2O", "resnet8-kd.teacher: no run 'resnet2O'; did you mean 'resnet20'"),
    ("teacher: resnet20,", "", "resnet8-kd.teacher: missing; the objective's term 'kd' learns from a teacher"),
    ("objective: {ce: {weight: 0.1}, kd: {weight: 0.9, temperature: 4}}", "objective: {ce: {}}",
     "no term of the objective uses 'resnet20'"),
    ("objective: {ce: {weight: 0.1}, kd: {weight: 0.9, temperature: 4}}", "objective: {}",
     "an objective needs at least one term"),
    ("recipe: digits, epochs: 30", "recipe: digit", "no file config/recipes/digit.yaml; did you mean 'digits'?"),
    ("epochs: 30", "epoch: 3", "resnet20.epoch: unknown key 'epoch'; did you mean 'epochs'?"),
    ("epochs: 30", "optimizer: {lrr: 3}", "optimizer.lrr: unknown key 'lrr'; did you mean 'lr'?"),
    ("epochs: 30", "optimizer: {name: lamb, lr: 0.1, betas: {first: 1}}",
     "optimizer.betas: {'first': 1} is not valid; expected a number, true, false, text, or a list of these"),
    ("epochs: 30", "optimizer: {name: null, lr: 0.1}",
     "optimizer.name: null is not valid; expected text"),
    ("epochs: 30", "schedule: {name: step}", "a step schedule needs either `drops` or `every`"),
    ("epochs: 30", "augment: [{padding: 1}]", "augment.0: missing `name`; valid: color_jitter, "),
    ("epochs: 30", "augment: 3", "augment: 3 is not valid; expected a list"),
    ("epochs: 30", "preprocess: {normalize: imagenets}", "did you mean 'imagenet'?"),
    ("recipe: digits, epochs: 30, ", "", "needs `recipe` (to train), `weights` (to import) or both; found neither"),
    ("recipe: digits, epochs: 30", "weights: a.pth, new_classifier: true",
     "resnet20.new_classifier: imported weights are not trained; remove this key or add `recipe`"),
    ("epochs: 30", "new_classifier: true", "there are no `weights` whose"),
    ("epochs: 30", "weights: a.pth, classifier_std: 0.01",
     "resnet20.classifier_std: 0.01 has no effect, the last layer is that of `weights`; write"),
    ("epochs: 30", "classifier_std: 0", "classifier_std: 0 is not valid; "),
    ("teacher: resnet20,", "teacher: resnet20, margin_source: pretrained,",
     "resnet8-kd.margin_source: 'resnet20' was not trained from `weights`; write teacher"),
    ("epochs: 30", "weights: 'run:resnet9'",
     "resnet20.weights: config/digits.yaml has no run 'resnet9'; did you mean 'resnet8'"),
    ("epochs: 30", "weights: 'run:digitz/resnet8'",
     "resnet20.weights: no experiment config/digitz.yaml; did you mean 'digits'?"),
    ("epochs: 30", "weights: 'run:../digits/resnet8'",
     "resnet20.weights: no experiment config/../digits.yaml; did you mean 'digits'?"),
    ("epochs: 30", "weights: 'run:resnet8-kd'",
     "resnet20: digits/resnet20 <- digits/resnet8-kd <- digits/resnet20 descend from each other in a circle"),
    ("recipe: digits, epochs: 30", "weights: a.pth, epochs: 3", "resnet20.epochs: imported weights are not trained"),
    ("epochs: 30", "teacher: resnet8-kd, objective: {kd: {}}", "descend from each other in a circle"),
    ("{model: cifar_resnet20, recipe: digits, epochs: 30, seeds: [0]}", "5",
     "digits.runs.resnet20: 5 is not valid; expected a mapping of keys"),
    ("    resnet8-kd:", "    resnet8:", ":9:5: key 'resnet8' occurs twice"),
    ("    resnet8-kd:", "    ../up:", "'../up' is not a plain name"),
    ("rows: [resnet20, resnet8, resnet8-kd]", "rows: [resnet2]", "tables.methods.rows: no run 'resnet2'; did you mean"),
    ("columns: [top1,", "columns: [topl,",
     "tables.methods.columns.0: 'topl' is not valid; did you mean 'top5' or 'top1'"),
    ("dataset: digits", "dataset: digit", "digits.dataset: no data set 'digit'; did you mean 'digits'?"),
    ("seeds: [0, 1, 2]", "seeds: [0, x]", "digits.seeds.1: 'x' is not valid; expected a whole number"),
    ("seeds: [0, 1, 2]", "seeds: [0, 1, 1]", "seeds: a seed occurs twice"),
    ("seeds: [0, 1, 2]", "seeds: []", "digits.seeds: [] is not valid"),
    ("  dataset: digits\n", "", "digits.dataset: missing; this key is required"),
    ("\ndigits:", "\nnumbers:", "top-level key 'numbers' must be the file's name, 'digits'"),
    ("  tables:", "  x: [\n  tables:", "config/digits.yaml:"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), MISTAKES)
def test_a_mistake_gets_one_line_that_names_file_key_and_remedy(config, monkeypatch, old, new, message):
    edit(config / "digits.yaml", old, new)
    monkeypatch.chdir(config.parent)
    with pytest.raises(UserError) as caught:
        load_experiment(Path("config/digits.yaml"))
    line = str(caught.value)
    assert message in line
    assert line.startswith("config/digits.yaml")
    assert "\n" not in line


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"a: 1\nb: 2\n", b"\xff\xfe", b"{[1]: 2}", b"1: {}", b"digits:\n"]
)
def test_what_is_no_experiment_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "digits.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_experiment(tmp_path / "nowhere.yaml")
