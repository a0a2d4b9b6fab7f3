"""What results need, and what decides them, as the workflow asks."""

import re

import pytest

from distillery.errors import UserError
from distillery.experiment.loading import experiment_names
from distillery.experiment.plan import Plan, make_plan
from distillery.paths import shipped
from distillery.reporting.measurements import needed_files

ONE = """
one:
  dataset: few
  seeds: [3, 4]
  runs:
    taken: {model: cifar_resnet8, weights: a.pth}
    big: {model: cifar_resnet14, recipe: short, seeds: [0]}
    small: {model: cifar_resnet8, recipe: short}
    student: {model: cifar_resnet8, recipe: short, teacher: big, objective: {kd: {}}}
    tuned: {model: cifar_resnet8, recipe: short, weights: "run:small"}
  tables:
    scores: {rows: [student, small], columns: [top1, params]}
    fast: {rows: [small], columns: [top1, throughput], figure: pareto}
"""
RECIPE = "epochs: 1\nbatch: 2\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "config"
    (folder / "recipes").mkdir(parents=True)
    (folder / "published").mkdir()
    (folder / "datasets.yaml").write_text(
        "few: {path: data/few}\nfar: {path: hub:cifar10}\nother: {path: /elsewhere}\n"
    )
    (folder / "recipes" / "short.yaml").write_text(RECIPE)
    (folder / "one.yaml").write_text(ONE)
    (folder / "two.yaml").write_text(
        "two: {dataset: other, runs: {copy: {model: cifar_resnet8, weights: 'run:one/big'}}}"
    )
    return folder


@pytest.fixture
def plan(config):
    return make_plan(config, {"experiments": "one"}, needed_files)


def made_by(plan, kind, path):
    return re.match(f"(?:{plan.pattern(kind)})/", f"{path}/") is not None


def test_a_run_that_is_not_there_is_a_student_so_that_asking_for_it_names_the_runs_there_are(plan):
    assert made_by(plan, "student", "one/bug")
    with pytest.raises(UserError, match="no run 'bug'; did you mean"):
        plan.digest("one", "bug")


@pytest.mark.parametrize(
    ("path", "kind"),
    [("one/taken", "imported"), ("one/big", "teacher"), ("one/small", "student"), ("one/student", "student"),
     ("one/tuned", "student"), ("two/copy", "imported")],
)  # fmt: skip
def test_exactly_one_rule_makes_each_network(plan, path, kind):
    assert [each for each in ("imported", "teacher", "student") if made_by(plan, each, path)] == [kind]


@pytest.mark.parametrize(
    ("path", "kind"),
    [("wide/taken", "imported"), ("wide/big", "teacher"), ("wide/mid", "teacher"), ("wide/small", "student"),
     ("wide/s-kd", "student")],
)  # fmt: skip
def test_defaults_and_sweeps_count_when_a_rule_is_chosen(config, path, kind):
    (config / "wide.yaml").write_text("""
wide:
  dataset: few
  defaults: {recipe: short}
  runs:
    taken: {model: cifar_resnet8, weights: a.pth}
    big: {model: cifar_resnet14}
    mid: {model: cifar_resnet14}
    small: {model: cifar_resnet8}
  sweep:
    pairs:
      over:
        student: {s: {model: cifar_resnet8, teacher: big}, t: {model: cifar_resnet8, teacher: {run: mid}}}
        method: {kd: {objective: {kd: {}}}}
""")
    plan = make_plan(config, {"experiments": "wide"}, needed_files)
    assert [each for each in ("imported", "teacher", "student") if made_by(plan, each, path)] == [kind]


def test_in_a_rehearsal_stand_ins_are_trained(config):
    plan = make_plan(config, {"rehearsal": "true", "experiments": "one"}, needed_files)
    assert made_by(plan, "student", "one/taken")
    assert made_by(plan, "imported", "two/copy")
    assert plan.raw_images("few") == []


def test_a_run_needs_its_teacher_and_the_run_it_starts_from(plan):
    assert plan.teacher_files("one", "student") == [
        "results/one/big/seed0/weights.safetensors",
        "results/one/big/seed0/run.json",
    ]
    assert plan.teacher_files("one", "small") == []
    assert plan.initial_files("one", "tuned")[0] == "results/one/small/seed3/weights.safetensors"
    assert plan.initial_files("two", "copy")[0] == "results/one/big/seed0/weights.safetensors"
    assert plan.initial_files("one", "taken") == []


def test_a_run_is_probed_again_where_tables_show_another_probe(config):
    found = []
    for columns in ("top1", "top1, knn", "knn, linear_probe"):
        (config / "one.yaml").write_text(ONE.replace("top1, params", columns))
        found.append(make_plan(config, {"experiments": "one"}, needed_files).probing("one", "student", "3"))
    assert found[0] == found[2] != found[1] == f"{found[0]}, no linear_probe"


def test_a_table_needs_its_own_runs_only(plan):
    needed = plan.measurements("one", "fast")
    assert needed[0] == "results/datasets/few/manifest.json"
    assert "results/one/small/seed4/metrics.json" in needed
    assert "results/one/small/profile.json" in needed
    assert not [path for path in needed if "student" in path]
    assert set(needed) < set(plan.measurements("one"))


def test_a_table_needs_its_baseline_too(config):
    gains = "    gains: {rows: [student], baseline: small, columns: [gain, params]}\n"
    (config / "one.yaml").write_text(ONE + gains)
    plan = make_plan(config, {"experiments": "one"}, needed_files)
    needed = plan.measurements("one", "gains")
    assert "results/one/small/seed4/metrics.json" in needed
    assert "results/one/small/profile.json" not in needed
    assert "results/one/student/profile.json" in needed
    assert set(needed[1:]) <= set(plan.drawn("one"))
    before = plan.tabulating("one", "gains")
    (config / "one.yaml").write_text(
        (ONE + gains).replace("small: {model: cifar_resnet8", "small: {model: cifar_resnet14")
    )
    assert make_plan(config, {"experiments": "one"}, needed_files).tabulating("one", "gains") != before


def test_all_results_of_an_experiment(plan):
    files = plan.all_results()
    assert files[:2] == ["results/tables/one.md", "results/figures/one"]
    assert "results/one/taken/seed0/weights.safetensors" in files
    assert "results/one/tuned/seed4/metrics.json" in files
    assert len(files) == len(set(files))


def test_figures_need_histories_and_the_tables_that_are_drawn(plan):
    assert "results/one/tuned/seed3/history.csv" in plan.drawn("one")
    assert "results/one/small/profile.json" in plan.drawn("one")
    assert "results/one/taken/seed0/history.csv" not in plan.drawn("one")


def test_a_partial_plan_waits_for_nothing_and_notes_what_is_there(config):
    plan = make_plan(config, {"partial": True, "experiments": "one"}, needed_files)
    files = plan.measurements("one")
    assert plan.unless_partial(files) == []
    assert plan.found_if_partial(files) == []
    (config.parent / "results/one/small").mkdir(parents=True)
    (config.parent / "results/one/small/profile.json").write_text("{}")
    assert len(plan.found_if_partial(files)) == 1
    assert plan.all_results() == ["results/tables/one.md", "results/figures/one"]


def test_what_decides_a_table(plan, config):
    before, alone = plan.tabulating("one"), plan.tabulating("one", "fast")
    (config / "one.yaml").write_text(ONE.replace("columns: [top1, params]", "columns: [params, top1]"))
    again = make_plan(config, {"experiments": "one"}, needed_files)
    assert again.tabulating("one") != before
    assert again.tabulating("one", "fast") == alone
    assert again.drawing("one") == plan.drawing("one")


def test_raw_images_in_data_are_watched_where_dvc_knows_them(plan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plan.raw_images("few") == []
    (tmp_path / "data.dvc").touch()
    assert plan.raw_images("few") == plan.raw_images_of("one") == plan.raw_images_of("two") == ["data.dvc"]
    assert plan.raw_images("other") == []


def test_downloads_are_for_data_sets_with_a_source(plan):
    assert plan.download_mark("far") == ["results/datasets/far.downloaded"]
    assert plan.download_mark("few") == []


def test_what_decides_a_data_set(plan, config):
    before = plan.preparing("few")
    (config / "datasets.yaml").write_text("few: {path: ./data/few/, on_corrupt: stop, classes: 3}\n")
    assert make_plan(config, {"experiments": "one"}, needed_files).preparing("few") == before
    (config / "datasets.yaml").write_text("few: {path: data/few, on_corrupt: skip}\n")
    assert make_plan(config, {"experiments": "one"}, needed_files).preparing("few") != before


def test_a_ledger_is_an_input_where_there_is_one(plan, config):
    assert plan.published("one") == []
    (config / "published" / "one.csv").write_text("run\n")
    assert plan.published("one") == plan.published("one", drawn=True) == [str(config / "published" / "one.csv")]


def test_broken_and_hidden_files_stop_no_other_experiment(config):
    (config / "half.yaml").write_text("half:\n  runs: {a: [")
    (config / ".hidden.yaml").write_text("\0")
    (config / "a b.yaml").write_text("a b: {}")
    (config / "date.yaml").write_text("date: {made: 2024-13-45}")
    (config / "list.yaml").write_text("list: {runs: {a: {recipe: short, teacher: [b]}}}")
    plan = make_plan(config, {"experiments": "one"}, needed_files)
    assert plan.names() == ["date", "half", "list", "one", "two"]
    assert plan.all_results()
    assert made_by(plan, "teacher", "one/big")
    with pytest.raises(UserError, match=r"half\.yaml"):
        plan.experiment("half")


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"rehersal": "true"}, r"--config rehersal: unknown key 'rehersal'; did you mean 'rehearsal'\?"),
        ({"partial": "yes"}, "--config partial=yes: expected true or false"),
        ({"experiments": "on"}, "--config experiments=on: no experiment .*on.yaml; did you mean 'one'"),
    ],
)
def test_a_mistyped_switch_is_refused(config, switches, message):
    with pytest.raises(UserError, match=message):
        make_plan(config, switches, needed_files)


def test_unknown_names_are_said_with_what_they_may_mean(plan):
    for call, message in (
        (lambda: plan.digest("one", "smal"), "no run 'smal'; did you mean 'small'"),
        (lambda: plan.digest("one", "small", "7"), "no seed 7; valid: 3, 4"),
        (lambda: plan.measurements("one", "fats"), "no table 'fats'; did you mean 'fast'"),
        (lambda: plan.experiment("oen"), "no experiment .*did you mean 'one'"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def test_all_names_every_experiment(config):
    assert make_plan(config, {"experiments": "all"}, needed_files).chosen == ("one", "two")
    assert Plan(config).chosen == ("digits",)


@pytest.mark.parametrize(
    ("target", "meant"),
    [
        ("results/tables/onee.md", "results/tables/one.md"),
        ("result/tables/one.html", "results/tables/one.html"),
        ("results/tables/one/score.tex", "results/tables/one/scores.tex"),
        ("results/one/smal/seed3/metrics.json", "results/one/small/seed3/metrics.json"),
        ("results/one/small/seed5/metric.json", "results/one/small/seed4/metrics.json"),
        ("results/dataset/few/manifest.json", "results/datasets/few/manifest.json"),
        ("results/tables/one.md", None),
        ("results/one/student", None),
        ("results/rehearsal/x", None),
        ("all", None),
        ("--cores", None),
        ("", None),
        ("/elsewhere/results/one", None),
    ],
)
def test_a_misspelt_target_is_known_for_what_was_meant(config, target, meant):
    assert Plan(config).meant(target) == meant


ASKED = ("digest", "profiling", "first_seed_files", "teacher_files", "initial_files", "manifest", "raw_images_of")


def said(plan, name, run):
    """All that rules of single runs ask, or the line that says why there is no answer."""
    try:
        seed = str(plan.experiment(name, run).seeds(run)[0])
        answers = [getattr(plan, asked)(name, run) for asked in ASKED]
        return [*answers, plan.bank(name, run, seed), plan.evaluation(name, run, seed), plan.probing(name, run, seed)]
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("name", experiment_names(shipped("config")))
def test_a_job_that_reads_only_its_own_run_is_told_the_same(name):
    whole = Plan(shipped("config"))
    for run in list(whole.experiment(name).config.runs)[::9]:
        assert said(Plan(shipped("config"), whole=False), name, run) == said(whole, name, run)


def test_a_job_reads_its_run_with_all_that_it_descends_from_and_no_other_line(config):
    lines = "    rest: {model: cifar_resnet8, recipe: short, seeds: [1, 1]}\n"
    wrong = ONE.replace("  tables:\n", f"{lines}  tables:\n")
    (config / "one.yaml").write_text(wrong + "    wrong: {rows: [nobody], columns: [top1]}\n")
    for run, family in (("student", {"student", "big"}), ("tuned", {"tuned", "small"}), ("small", {"small"})):
        assert set(Plan(config, whole=False).experiment("one", run).config.runs) == family
    assert "rest.seeds: a seed occurs twice" in said(Plan(config, whole=False), "one", "rest")
    with pytest.raises(UserError):
        Plan(config).experiment("one", "student")
    (config / "one.yaml").write_text(ONE)
    assert said(Plan(config, whole=False), "one", "bug") == said(Plan(config), "one", "bug")


def test_a_page_that_starts_from_others_and_one_of_many_jobs_are_read_whole(config):
    (config.parent / "data.dvc").touch()
    two = (config / "two.yaml").read_text().replace("{copy", "{alone: {model: cifar_resnet8, recipe: short}, copy")
    (config / "two.yaml").write_text(two)
    plan = Plan(config, whole=False)
    assert set(plan.experiment("two", "alone").config.runs) == {"alone", "copy"}
    assert plan.raw_images_of("two", "alone") == Plan(config).raw_images_of("two") == ["data.dvc"]
    many = "".join(f"    r{number}: {{model: cifar_resnet8, recipe: short}}\n" for number in range(20))
    (config / "one.yaml").write_text(ONE.replace("  tables:\n", f"{many}  tables:\n"))
    assert [len(plan.experiment("one", f"r{number}").config.runs) for number in range(20)][:9] == [1] * 9
    assert len(plan.experiment("one", "r19").config.runs) == 25
