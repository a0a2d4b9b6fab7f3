"""Several teachers: their mean, or each by its own term; live or in banks; and chains of assistants."""

import json

import pytest
import torch

from distillery.distill.step import Outputs
from distillery.distill.teacher import Teacher, mean_outputs
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.plan import Plan
from distillery.results import file_hash
from distillery.training.answers import record_answers

pytestmark = pytest.mark.slow

RUNS = """
    tall:   {model: cifar_resnet8, recipe: tiny, preprocess: {size: 16}, seeds: [0]}
    taller: {model: cifar_resnet8, recipe: tiny, preprocess: {size: 12}, seeds: [0]}
"""


def add(workplace, *lines):
    workplace.edit("  tables:", RUNS + "".join(f"    {line}\n" for line in lines) + "  tables:")


def weights_of(folder):
    return file_hash(folder / "weights.safetensors")


def test_the_mean_of_probabilities_or_of_logits_is_weighted():
    one, other = torch.randn(2, 4, 3, dtype=torch.float64)
    mean = mean_outputs([Outputs(one), Outputs(other)], [1, 3], "probabilities")
    torch.testing.assert_close(mean.logits_BC.softmax(1), one.softmax(1) / 4 + other.softmax(1) * 3 / 4)
    torch.testing.assert_close(mean.each_teacher[1].logits_BC, other)
    mean = mean_outputs([Outputs(one), Outputs(other)], [1, 3], "logits")
    torch.testing.assert_close(mean.logits_BC, one / 4 + other * 3 / 4)
    assert mean_outputs([Outputs(one), Outputs(other[:, :0])], [1, 1], "logits").logits_BC.shape == (4, 0)


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_teachers_that_say_the_same_teach_as_one_does(workplace, mean):
    add(
        workplace,
        "also: {model: cifar_resnet14, recipe: tiny, seeds: [0]}",
        "by-two: {model: cifar_resnet8, recipe: tiny, teacher: [big, {run: also, weight: 3}], "
        f"teacher_mean: {mean}, objective: {{ce: {{}}, kd: {{}}}}}}",
        "by-one: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {ce: {}, kd: {}}}",
    )
    for run in ("big", "also"):
        workplace.make(run)
    histories = [(workplace.make(run) / "history.csv").read_text().splitlines() for run in ("by-two", "by-one")]
    last = [[float(value) for value in lines[-1].split(",")] for lines in histories]
    heads = histories[0][0].split(",")
    loss = heads.index("train_kd")
    assert last[0][loss] == pytest.approx(last[1][loss], rel=1e-3)
    record = json.loads((workplace.results / "tiny/by-two/seed0/run.json").read_text())
    assert [teacher["run"] for teacher in record["teacher"]] == ["big", "also"]


def test_each_sees_its_own_squares_and_teaches_its_own_term(workplace, monkeypatch):
    shown, original = [], Teacher.__call__
    monkeypatch.setattr(
        Teacher, "__call__", lambda self, images: shown.append(images.shape[-1]) or original(self, images)
    )
    terms = "ce: {}, kd: {teacher: big}, rkd: {teacher: tall}, mgd: {teacher: taller}"
    add(
        workplace,
        f"each: {{model: cifar_resnet8, recipe: tiny, teacher: [big, tall, taller], objective: {{{terms}}}}}",
    )
    for run in ("big", "tall", "taller"):
        workplace.make(run)
    shown.clear()
    workplace.make("each")
    assert set(shown) == {8, 16, 12}
    header = (workplace.results / "tiny/each/seed0/history.csv").read_text().splitlines()[0].split(",")
    assert {"train_kd", "train_rkd", "train_mgd"} <= set(header)


def test_a_term_by_its_own_teacher_is_what_it_is_alone(workplace):
    add(
        workplace,
        "two: {model: cifar_resnet8, recipe: tiny, teacher: [tall, big], "
        "objective: {rkd: {teacher: tall, weight: 0}, kd: {teacher: big}}}",
        "one: {model: cifar_resnet8, recipe: tiny, teacher: big, objective: {kd: {}}}",
    )
    for run in ("big", "tall"):
        workplace.make(run)
    assert weights_of(workplace.make("two")) == weights_of(workplace.make("one"))


def test_live_and_banked_teachers_mix_and_give_the_same_bytes(workplace):
    def line(name, one, other):
        return (
            f"{name}: {{model: cifar_resnet8, recipe: tiny, teacher: [{one}, {other}], "
            "objective: {ce: {}, kd: {}, rkd: {teacher: tall}}}"
        )

    bank = "{{run: {}, answers: bank}}".format
    add(
        workplace,
        line("live", "big", "tall"),
        line("banked", bank("big"), bank("tall")),
        line("half", "big", bank("tall")),
    )
    for run in ("big", "tall"):
        workplace.make(run)
    plan = Plan(workplace.experiment.parent)
    assert [path.split("/")[2] for path in plan.bank("tiny", "banked", "0")] == ["big", "tall"]
    assert plan.bank("tiny", "half", "0") == plan.bank("tiny", "banked", "0")[1:]
    for job in workplace.job("half").by_teacher()[1:]:
        record_answers(job, stop_nothing())
    live = weights_of(workplace.make("live"))
    assert weights_of(workplace.make("half")) == live
    assert weights_of(workplace.make("banked")) == live


def stop_nothing():
    from distillery.cluster.signals import StopSignal

    return StopSignal()


def test_all_teachers_are_in_the_digest_whatever_they_are_called(workplace):
    add(
        workplace,
        "s: {model: cifar_resnet8, recipe: tiny, teacher: [big, tall], objective: {kd: {}, rkd: {teacher: tall}}}",
    )
    before = workplace.experiment.read_text()

    def digest(*changes):
        text = before
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        workplace.experiment.write_text(text)
        return load_experiment(workplace.experiment).spec("s").digest

    first = digest()
    assert digest((" tall:", " high:"), (", tall]", ", high]"), ("teacher: tall}", "teacher: high}")) == first
    others = [
        digest(("teacher: [big, tall]", "teacher: [{run: big, weight: 2}, tall]")),
        digest(("teacher: [big, tall]", "teacher: [big, tall], teacher_mean: logits")),
        digest(("teacher: [big, tall]", "teacher: [{run: big, answers: bank}, tall]")),
        digest(("preprocess: {size: 16}", "preprocess: {size: 16}, epochs: 3")),
        digest(("teacher: [big, tall]", "teacher: [big, tall, taller]")),
    ]
    assert len({first, *others}) == 6
    one = digest(("teacher: [big, tall]", "teacher: [tall]"), ("rkd: {teacher: tall}", "rkd: {teacher: tall}"))
    assert one == digest(("teacher: [big, tall]", "teacher: tall"), ("rkd: {teacher: tall}", "rkd: {}"))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("teacher: [big, big], objective: {kd: {}}", "teacher: 'big' stands there twice"),
        ("teacher: [big, none], objective: {kd: {}}", "teacher: no run 'none'"),
        ("teacher: [], objective: {kd: {}}", "teacher: [] is not valid"),
        ("teacher: [big, tall], objective: {rkd: {}}", "rkd.teacher: missing; only logits are averaged"),
        ("teacher: [big, tall], objective: {kd: {teacher: big}}", "teacher: no term learns from 'tall'"),
        ("teacher: [big, tall], objective: {kd: {teacher: small}}", "kd.teacher: 'small' does not teach it"),
        ("teacher: [big, tall], objective: {kd: {}, ce: {teacher: big}}", "it learns from no teacher"),
        ("teacher: big, teacher_mean: logits, objective: {kd: {}}", "teacher_mean: nothing is averaged"),
        ("teacher: {run: big, weight: 2}, objective: {kd: {}}", "teacher.weight: nothing is averaged"),
        ("teacher_mean: logits", "teacher_mean: there is no `teacher`"),
        ("teacher: [big, {run: tall, weight: 0}], objective: {kd: {}}", "weight: 0 is not valid"),
        ("teacher: [big, {run: tall, weight: -1}], objective: {kd: {}}", "weight: -1 is not valid"),
        ("teacher: [big, {run: tall, weight: 1.0e-320}], objective: {kd: {}}", "weight: 1e-320 is not valid"),
        ("teacher: [big, {run: tall, weight: true}], objective: {kd: {}}", "weight: true is not valid"),
        ("teacher: [[big, tall]], objective: {kd: {}}", "teacher.0: ['big', 'tall'] is not valid"),
        ("teacher: [big, s], objective: {kd: {}}", "descend from each other in a circle"),
        (
            "teacher: [big, tall], objective: {mgd: {teacher: big}, at: {teacher: tall}}",
            "at and mgd learn from stages of two teachers|mgd and at learn from stages of two teachers",
        ),
        ("teacher: [big, tall], objective: {mlkd: {}}", "mlkd: shows a second view, which only one teacher can see"),
        (
            "teacher: [big, {run: tall, answers: bank}], objective: {kd: {}, mgd: {teacher: tall}}",
            "teacher.answers: 'mgd' learns from the teacher's",
        ),
    ],
)
def test_what_several_teachers_cannot_do_is_refused(workplace, keys, line):
    add(workplace, f"s: {{model: cifar_resnet8, recipe: tiny, {keys}}}")
    with pytest.raises(UserError) as error:
        load_experiment(workplace.experiment)
    assert any(part in str(error.value) for part in line.split("|")), str(error.value)


def test_a_chain_of_assistants_is_a_chain_of_runs(workplace):
    add(
        workplace,
        "assistant: {model: cifar_resnet8, recipe: tiny, seeds: [0], teacher: big, objective: {kd: {}}}",
        "last: {model: cifar_resnet8, recipe: tiny, teacher: assistant, objective: {kd: {}}}",
        "both: {model: cifar_resnet8, recipe: tiny, teacher: [big, assistant], objective: {kd: {}}}",
    )
    for run in ("big", "assistant"):
        workplace.make(run)
    for run in ("last", "both"):
        assert (workplace.make(run) / "weights.safetensors").exists()
    files = Plan(workplace.experiment.parent).teacher_files("tiny", "both")
    assert [path.split("/")[2] for path in files[::2]] == ["big", "assistant"]


def test_each_is_measured_on_the_squares_that_it_teaches_by(workplace, capsys):
    add(workplace, "s: {model: cifar_resnet8, recipe: tiny, teacher: [big, tall], objective: {ce: {}, kd: {}}}")
    for run in ("big", "tall"):
        workplace.make(run)
    record = json.loads((workplace.make("s") / "run.json").read_text())
    assert all({"run", "top1", "top1_as_it_teaches"} == set(teacher) for teacher in record["teacher"])
    big, tall = (line for line in capsys.readouterr().out.splitlines() if " scores " in line)
    assert "teacher big" in big
    assert "on those it teaches by (the student's squares of 8 pixels)" in big
    assert "teacher tall" in tall
    assert "on those it teaches by (its own squares of 16 pixels)" in tall


@pytest.mark.parametrize("answers", ["live", "bank"])
def test_one_that_guesses_is_refused_among_others(workplace, answers):
    from tests.training.test_initial import blind, more_validation_images

    more_validation_images(workplace)
    one = f"{{run: big, answers: {answers}}}"
    add(
        workplace,
        f"s: {{model: cifar_resnet8, recipe: tiny, teacher: [tall, {one}], objective: {{ce: {{}}, kd: {{}}}}}}",
    )
    workplace.make("tall")
    blind(workplace.make("big"))
    job = workplace.job("s").by_teacher()[1]
    with pytest.raises(UserError, match=r"runs\.s\.teacher: big scores 33\.33 % top-1 on the 24 .* classes in"):
        record_answers(job, stop_nothing()) if answers == "bank" else workplace.make("s")
