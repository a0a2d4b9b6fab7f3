"""A wrong teacher teaches nobody, in whichever way: live or by bank, with labels or without, alone or among others."""

import json
import shutil

import pytest
from tests.training.test_initial import blind, more_validation_images

from distillery.data.prepare import prepare_dataset
from distillery.distill.student import FeatureExtractor
from distillery.distill.teacher import Teacher
from distillery.errors import UserError
from distillery.experiment.schema.dataset import Dataset
from distillery.results import write_sealed

BANK = "{run: big, answers: bank}"
WAYS = {
    "live": "teacher: big, objective: {ce: {}, kd: {}}",
    "features": "teacher: big, objective: {similarity: {}}",
    "no labels": "teacher: big, labels: 0, objective: {kd: {}}",
    "bank": f"teacher: {BANK}, objective: {{ce: {{}}, kd: {{}}}}",
    "bank of features, no labels": f"teacher: {BANK}, crops: 2, labels: 0, objective: {{rkd: {{}}}}",
    "one of several": "teacher: [tall, big], objective: {kd: {teacher: tall}, rkd: {teacher: big}}",
    "one bank of several": f"teacher: [tall, {BANK}], objective: {{ce: {{}}, kd: {{}}}}",
}


@pytest.fixture(params=WAYS)
def taught(workplace, request):
    """A student `s` that is taught by `big` in one of the ways."""
    workplace.edit(
        "  tables:",
        "    tall: {model: cifar_resnet8, recipe: tiny, seeds: [0], preprocess: {size: 16}}\n"
        f"    s: {{model: cifar_resnet8, recipe: tiny, seeds: [0], {WAYS[request.param]}}}\n  tables:",
    )
    if "tall" in WAYS[request.param]:
        workplace.make("tall")
    return workplace


def refused(workplace):
    """The line that refuses the student, of whom and of whose bank nothing is left."""
    with pytest.raises(UserError) as error:
        workplace.make("s")
    assert "\n" not in str(error.value)
    assert not [path for path in (workplace.results / "tiny/s").rglob("*") if path.is_file()]
    assert not list((workplace.results / "tiny/big/seed0").glob("bank/*"))
    return str(error.value)


def test_a_teacher_that_guesses_teaches_nobody(taught):
    more_validation_images(taught)
    if (taught.results / "tiny/tall").exists():
        taught.make("tall")
    blind(taught.make("big"))
    assert "runs.s.teacher: big scores 33.33 % top-1 on the 24 validation images as it would teach" in refused(taught)


def rename_a_class(workplace):
    """The same images, of which one class is called otherwise: the last one now, and no more the first."""
    data = workplace.folder / "other"
    shutil.copytree(workplace.folder / "data/tiny", data)
    for split in ("train", "val"):
        (data / split / "ape").rename(data / split / "zebu")
    prepare_dataset("tiny", Dataset(path=str(data)), workplace.results / "datasets/tiny", workers=1)


def test_a_teacher_whose_classes_are_no_longer_the_data_sets_teaches_nobody(taught):
    taught.make("big")
    rename_a_class(taught)
    line = refused(taught)
    assert "seed0/run.json: made from other images than tiny now holds" in line
    assert "distillery train" in line


def test_a_teacher_is_measured_on_the_squares_that_it_teaches_by_and_on_no_others(taught, monkeypatch):
    taught.edit("cifar_resnet14, recipe: tiny, seeds: [0]}", "cifar_resnet14, recipe: tiny, preprocess: {size: 12}}")
    taught.make("big")
    shown, original = [], FeatureExtractor.__call__

    def call(self, images):
        shown.append((self.network, images.shape[-1]))
        return original(self, images)

    monkeypatch.setattr(FeatureExtractor, "__call__", call)
    taught.make("s")
    sizes = {size for network, size in shown if len(list(network.parameters())) > 30}  # the larger one
    assert sizes == {12}
    teachers = json.loads((taught.results / "tiny/s/seed0/run.json").read_text())["teacher"]
    (big,) = [each for each in (teachers if isinstance(teachers, list) else [teachers]) if each["run"] == "big"]
    assert big["top1"] == big["top1_as_it_teaches"]


def test_an_imported_teacher_normalises_as_it_was_trained_whatever_it_teaches(taught, monkeypatch):
    record = json.loads((taught.make("big") / "run.json").read_text())
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    write_sealed(taught.results / "tiny/big/seed0/run.json", record | {"statistics": own})
    seen, original = [], Teacher.__init__

    def begin(self, extractor, norm):
        seen.append(extractor.normalize)
        original(self, extractor, norm)

    monkeypatch.setattr(Teacher, "__init__", begin)
    taught.make("s")
    assert any(normalize.mean.flatten().tolist() == pytest.approx(own["mean"]) for normalize in seen)
