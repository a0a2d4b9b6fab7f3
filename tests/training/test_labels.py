"""Runs that may use few labels: what they learn from, and that nothing else reaches them."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import written
from tests.cpu_sync_batchnorm import convert_for_cpu
from tests.training.processes import make_in_processes

from distillery.cluster.signals import Stopped
from distillery.data.arrow import ArrowImages
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.training import build

pytestmark = pytest.mark.slow

FEW = "taught: {model: cifar_resnet8, recipe: tiny, labels: 6, teacher: big,"


@pytest.fixture
def few(workplace):
    """The tiny workplace, in which `taught` knows 6 of 36 labels and learns from its teacher on all images."""
    workplace.edit("taught: {model: cifar_resnet8, recipe: tiny, teacher: big,", FEW)
    workplace.edit("  tables:", "    alone: {model: cifar_resnet8, recipe: tiny, labels: 6}\n  tables:")
    workplace.make("big")
    return workplace


def last_row(folder):
    return list(csv.DictReader((folder / "history.csv").open()))[-1]


def test_hidden_labels_change_nothing(few, monkeypatch):
    """Images without a label teach by the teacher's answers alone: with other labels the bytes are the same."""
    honest = written(few.make("taught"))
    original = ArrowImages.with_labels_of

    def lying(self, ids):
        self.labels = self.labels.copy()
        others = [index for index in range(len(self)) if index not in set(ids.tolist())]
        self.labels[others] = (self.labels[others] + 1) % 3
        return original(self, ids)

    monkeypatch.setattr(ArrowImages, "with_labels_of", lying)
    assert written(few.make("taught", results="lies")) == honest
    few.edit("labels: 6, teacher", "labels: 7, teacher")
    assert written(few.make("taught", results="more")) != honest


def test_runs_of_a_recipe_take_the_same_steps_whatever_their_labels(few):
    steps = set()
    for run in ("small", "alone", "taught"):
        record = json.loads((few.make(run) / "run.json").read_text())
        steps.add(record["effective"]["steps_per_epoch"])
    assert steps == {36 // 8}


@pytest.mark.parametrize("run", ["alone", "taught"])
def test_an_epoch_of_few_labels_is_resumed_to_the_byte(few, stop_after, monkeypatch, run):
    whole = written(few.make(run))
    stop_after(2)
    with pytest.raises(Stopped):
        few.make(run, results="parts")
    monkeypatch.undo()
    assert written(few.make(run, results="parts")) == whole


def test_micro_batches_add_up(few):
    # Without batch norm, whose statistics are each micro-batch's own.
    plain = "model: 'timm:test_vit', model_args: {img_size: 8, patch_size: 4},"
    few.edit("taught: {model: cifar_resnet8,", f"taught: {{{plain}")
    whole = last_row(few.make("taught"))
    parts = last_row(few.make("taught", results="parts", device_batch=2))
    for key, value in whole.items():
        assert float(parts[key]) == pytest.approx(float(value), rel=1e-3, abs=1e-3), key


@pytest.mark.parametrize("more", ["", ", mlkd: {weight: 0.1}, pskd: {}", ", cskd: {}, tfkd: {}"])
def test_two_processes_give_the_result_of_one(few, monkeypatch, more):
    few.edit("kd: {weight: 0.5, temperature: 2}", f"kd: {{weight: 0.5, temperature: 2}}{more}")
    few.edit_recipe("sync_batchnorm: true\ndrop_last: false")
    # One labelled image in each batch: one of the processes has none.
    few.edit("labels: 6, teacher", "labels: 6, labelled_share: 0.13, teacher")
    few.make("big")
    alone, together = few.make("taught"), few.job("taught", results="together")
    monkeypatch.setattr(build, "convert_sync_batchnorm", convert_for_cpu)
    make_in_processes(together, 2)
    assert '"processes": 2' in (together.folder / "run.json").read_text()
    weights = load_file(together.folder / "weights.safetensors")
    for name, value in load_file(alone / "weights.safetensors").items():
        assert torch.allclose(weights[name].double(), value.double(), rtol=2e-3, atol=2e-4), name
    row, other = last_row(alone), last_row(together.folder)
    assert float(other["train_top1"]) == pytest.approx(float(row["train_top1"]))
    assert float(other["train_ce"]) == pytest.approx(float(row["train_ce"]), rel=1e-3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("labels: true", "expected a number of images"),
        ("labels: -1", "expected a number of images"),
        ("labels: 0.0", "expected a number of images"),
        ("labels: 0", "labels: 0 leaves ce nothing to learn from; remove ce or give it some labels"),
        ("labels: 0, objective: {kd: {}}, labelled_share: 0.5", "labelled_share: 0.5 has no effect with `labels: 0`"),
        ("labels: 0, objective: {kd: {}}, images: labelled", "images: labelled has no effect with `labels: 0`"),
        (
            "labels: 0, objective: {kd: {}, bake: {}}",
            r"needs all labels \(BAKE's partners\); remove it",
        ),
        ("labels: 1.5", "expected a number of images"),
        ("labels: some", "expected a number of images"),
        ("images: labelled", "images: labelled has no effect without `labels`"),
        ("labels: 6, images: labelled, labelled_share: 0.5", "labelled_share: 0.5 has no effect"),
        ("labels: 6, labelled_share: 1", "labelled_share"),
        ("labels: 6, objective: {kd: {}}", "no term of the objective learns from labels"),
        ("labels: 6, images: labelled, objective: {ce: {}, crd: {}}", "crd remembers every training image"),
        ("labels: 6, objective: {ce: {}, kd: {}, bake: {}}", "write images: labelled"),
        ("labels: 6, mix: {mixup: 1.0}", "cannot be mixed"),
        ("labels: 6, repeats: 2", "repeats: 2 cannot go with `labels`"),
    ],
)
def test_what_cannot_go_together_gets_one_line(workplace, keys, message):
    line = f"taught: {{model: cifar_resnet8, recipe: tiny, teacher: big, {keys}"
    if "objective" in keys:
        workplace.edit(
            "teacher: big,\n             objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}",
            "teacher: big",
        )
        line = f"taught: {{model: cifar_resnet8, recipe: tiny, teacher: big, {keys}"
        workplace.edit("taught: {model: cifar_resnet8, recipe: tiny, teacher: big", line)
    else:
        workplace.edit("taught: {model: cifar_resnet8, recipe: tiny, teacher: big,", f"{line},")
    with pytest.raises(UserError, match=message) as caught:
        load_experiment(workplace.experiment)
    assert "tiny.runs.taught" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("terms", ["pskd: {}", "ce: {}, masked_generative: {}"])
def test_a_term_that_never_reads_the_rows_of_other_images_may_do_without_them(workplace, terms):
    workplace.edit(
        "objective: {ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}",
        f"labels: 6, images: labelled, objective: {{kd: {{}}, {terms}}}",
    )
    assert set(load_experiment(workplace.experiment).spec("taught").objective.terms()) > {"kd"}


def test_images_without_a_label_need_a_term_that_does_without(workplace):
    workplace.edit(
        "    small:  {model: cifar_resnet8, recipe: tiny}",
        "    small:  {model: cifar_resnet8, recipe: tiny, labels: 6, images: all}",
    )
    with pytest.raises(UserError, match="write images: labelled"):
        load_experiment(workplace.experiment)


@pytest.mark.parametrize("labels", ["36", "99", "0.001"])
def test_all_labels_and_none_are_no_choice(workplace, labels):
    workplace.edit(
        "    small:  {model: cifar_resnet8, recipe: tiny}",
        f"    small:  {{model: cifar_resnet8, recipe: tiny, labels: {labels}}}",
    )
    with pytest.raises(UserError, match=f"labels: {labels} of 36 training images"):
        workplace.make()


def test_an_experiments_labels_are_those_of_its_trained_runs(workplace):
    workplace.edit("  seeds: [0, 1]", "  seeds: [0, 1]\n  labels: 0.5")
    workplace.edit("big:    {model: cifar_resnet14,", "big:    {model: cifar_resnet14, labels: all,")
    experiment = load_experiment(workplace.experiment)
    assert experiment.labels("big") is None
    assert experiment.labels("small").images == "labelled"
    assert experiment.labels("taught").labelled_share == 0.5
    assert "labels" not in experiment.spec("big").ledger
    assert experiment.spec("small").ledger["labels"]["labels"] == 0.5


def test_partners_of_labelled_images_are_labelled(workplace):
    workplace.edit(
        "  tables:",
        "    few: {model: cifar_resnet8, recipe: tiny, labels: 6, objective: {ce: {}, bake: {}}}\n  tables:",
    )
    assert "train_bake" in last_row(workplace.make("few"))


@pytest.fixture
def without(few):
    """`taught` learns from its teacher alone."""
    few.edit(FEW, "taught: {model: cifar_resnet8, recipe: tiny, labels: 0, teacher: big,")
    few.edit("{ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}", "{kd: {}}")
    return few


@pytest.mark.parametrize("mix", ["null", "{mixup: 0.8}"])
def test_a_run_without_labels_is_that_of_its_other_terms_with_all(without, mix):
    without.edit_recipe(f"mix: {mix}")
    without.make("big")
    folder = without.make("taught")
    assert "train_top1" not in last_row(folder)
    assert float(last_row(folder)["val_top1"]) > 0
    without.edit("labels: 0,", "labels: all,")
    same = without.make("taught", results="all")
    assert (same / "weights.safetensors").read_bytes() == (folder / "weights.safetensors").read_bytes()
    assert "train_top1" in last_row(same)


def test_no_label_reaches_a_run_without_labels(without, monkeypatch):
    honest = written(without.make("taught"))
    original = ArrowImages.with_labels_of

    def lying(self, ids):
        self.labels = (self.labels + 1) % 3
        return original(self, ids)

    monkeypatch.setattr(ArrowImages, "with_labels_of", lying)
    assert written(without.make("taught", results="lies")) == honest


def test_a_table_says_that_a_run_had_no_labels(without):
    assert load_experiment(without.experiment).labels("taught").shown == "0"


def test_crd_takes_no_hidden_label(few, monkeypatch):
    few.edit("{ce: {weight: 0.5}, kd: {weight: 0.5, temperature: 2}}", "{ce: {}, crd: {negatives: 9}}")
    honest = written(few.make("taught"))
    original = ArrowImages.with_labels_of

    def lying(self, ids):
        others = [index for index in range(len(self)) if index not in set(ids.tolist())]
        self.labels = self.labels.copy()
        self.labels[others] = (self.labels[others] + 1) % 3
        return original(self, ids)

    monkeypatch.setattr(ArrowImages, "with_labels_of", lying)
    assert written(few.make("taught", results="lies")) == honest
