"""Data sets with images without labels, or with no others to train on; and lists of those that have labels."""

import json
import shutil

import pytest

from distillery.data.arrow import HIDDEN
from distillery.data.manifest import load_manifest
from distillery.data.prepare import prepare_dataset
from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.ledger import images_entry
from distillery.experiment.loading import load_dataset
from distillery.training.inputs import training_images

pytestmark = pytest.mark.slow


def prepare(workplace, keys="unlabelled: more"):
    """The tiny data set with some of its training images in no class folder, prepared anew; its teacher is made."""
    data = workplace.folder / "data" / "tiny"
    (workplace.experiment.parent / "datasets.yaml").write_text(f"tiny: {{path: {data}, {keys}}}\n")
    shutil.rmtree(workplace.results / "datasets")
    dataset = load_dataset(workplace.experiment.parent / "datasets.yaml", "tiny")
    return prepare_dataset("tiny", dataset, workplace.results / "datasets" / "tiny", workers=1)


@pytest.fixture
def more(workplace):
    """Of 36 training images, 27 lie in a folder without classes."""
    data = workplace.folder / "data" / "tiny"
    (data / "more").mkdir()
    for path in sorted((data / "train").rglob("*.png")):
        if int(path.stem) >= 3:
            path.rename(data / "more" / f"{path.parent.name}-{path.name}")
    workplace.edit(
        "  tables:",
        "    fit:   {model: cifar_resnet8, recipe: tiny, seeds: [0], epochs: 3}\n"
        "    semi:  {model: cifar_resnet8, recipe: tiny, teacher: fit, objective: {ce: {}, kd: {}}}\n"
        "    free:  {model: cifar_resnet8, recipe: tiny, teacher: fit, objective: {kd: {}}}\n"
        "    some:  {model: cifar_resnet8, recipe: tiny, teacher: fit, labels: 6, objective: {ce: {}, kd: {}}}\n"
        "    plain: {model: cifar_resnet8, recipe: tiny, teacher: fit, images: labelled}\n"
        "  tables:",
    )
    workplace.edit(
        "plain: {model: cifar_resnet8, recipe: tiny, teacher: fit, images: labelled}",
        "plain: {model: cifar_resnet8, recipe: tiny, teacher: fit, images: labelled, objective: {ce: {}, kd: {}}}",
    )
    return workplace


def known(workplace, run):
    labels = training_images(workplace.job(run)).labels
    return len(labels), int((labels != HIDDEN).sum())


def test_images_without_labels_are_trained_on_where_a_term_learns_from_a_teacher(more):
    manifest = prepare(more)
    assert (manifest.splits["train"].images, manifest.splits["unlabelled"].images) == (9, 27)
    assert {run: known(more, run) for run in ("small", "semi", "free", "some", "plain")} == {
        "small": (36, 9),
        "semi": (36, 9),
        "free": (36, 0),
        "some": (36, 6),
        "plain": (36, 9),
    }
    experiment = load_experiment(more.experiment)
    said = {run: experiment.labels(run).shown for run in ("small", "semi", "free", "some", "plain")}
    assert said == {"small": "all", "semi": "all + unlabelled", "free": "0", "some": "6 + unlabelled", "plain": "all"}
    more.make("fit")
    steps = {json.loads((more.make(run) / "run.json").read_text())["effective"]["steps_per_epoch"] for run in said}
    assert len(steps) == 1


@pytest.mark.parametrize("kind", ["tar", "list", "elsewhere"])
def test_they_may_lie_in_an_archive_on_a_list_or_elsewhere(more, kind):
    data = more.folder / "data" / "tiny"
    first = prepare(more)
    if kind == "tar":
        shutil.make_archive(str(data / "more"), "tar", data / "more")
        named = "more.tar"
    elif kind == "list":
        (data / "more.txt").write_text("".join(f"more/{path.name}\n" for path in (data / "more").iterdir()))
        named = "more.txt"
    else:
        (data / "more").rename(more.folder / "elsewhere")
        named = str(more.folder / "elsewhere")
    second = prepare(more, f"unlabelled: {named}")
    assert second.digest == first.digest
    lines = [load_dataset(more.experiment.parent / "datasets.yaml", "tiny")]
    assert images_entry(lines[0]) == images_entry(lines[0].model_copy(update={"unlabelled": "more"}))


def test_a_data_set_may_have_no_other_images_to_train_on(more):
    data = more.folder / "data" / "tiny"
    prepare(more)
    more.make("fit")
    shutil.copy(more.results / "tiny/fit/seed0/weights.safetensors", more.folder / "fit.safetensors")
    shutil.rmtree(data / "train")
    more.experiment.write_text(
        "tiny: {dataset: tiny, runs: {"
        f"fit: {{model: cifar_resnet8, weights: {more.folder}/fit.safetensors, preprocess: {{size: 8}}}}, "
        "free: {model: cifar_resnet8, recipe: tiny, teacher: fit, labels: 0, objective: {kd: {}}}, "
        "bare: {model: cifar_resnet8, recipe: tiny}}}\n"
    )
    manifest = prepare(more, "unlabelled: more, split: evaluation")
    assert set(manifest.splits) == {"val", "unlabelled"}
    more.make("fit")
    assert (more.make("free") / "weights.safetensors").exists()
    with pytest.raises(UserError, match=r"bare\.labels: no training image of the data set has a label"):
        more.make("bare")


def test_a_validation_image_among_them_is_said(more, capsys):
    data = more.folder / "data" / "tiny"
    shutil.copy(data / "val/ape/000.png", data / "more/stray.png")
    manifest = prepare(more)
    assert manifest.duplicates.across_splits == (("unlabelled/stray.png", "val/ape/000.png"),)
    assert manifest.duplicates.contradicting == ()
    said = capsys.readouterr().err
    assert "28 images without labels beside them" in said
    assert "1 validation image is also among the training images" in said
    assert load_manifest(more.results / "datasets" / "tiny").splits["unlabelled"].images == 28


@pytest.mark.parametrize(
    ("unlabelled", "content", "line"),
    [
        ("nowhere", None, "unlabelled: no folder, archive or list 'nowhere' in it"),
        ("empty.txt", "\n", "no images in it"),
        ("gone.txt", "more/ape-003.png\nmore/none.png\n", "gone.txt:2: more/none.png: no such image"),
        (
            "twice.txt",
            "more/ape-003.png\nmore/ape-003.png\n",
            "twice.txt:2: more/ape-003.png: no such image, or it was",
        ),
    ],
)
def test_what_cannot_be_found_is_said(more, unlabelled, content, line):
    if content is not None:
        (more.folder / "data" / "tiny" / unlabelled).write_text(content)
    with pytest.raises(UserError, match=line):
        prepare(more, f"unlabelled: {unlabelled}")


LISTED = "labels: {{list: {}}}, objective: {{ce: {{}}, kd: {{}}}}"


def listed(workplace, content):
    path = workplace.folder / "few.txt"
    path.write_text(content)
    workplace.edit(
        "  tables:", f"    l: {{model: cifar_resnet8, recipe: tiny, teacher: big, {LISTED.format(path)}}}\n  tables:"
    )
    return path


def test_a_list_says_which_images_have_labels(workplace):
    path = listed(workplace, "train/ape/000.png\nbee/003.png\n\ncow/011.png\n")
    images = training_images(workplace.job("l"))
    found = [(images.path(index), label) for index, label in enumerate(images.labels) if label != HIDDEN]
    assert found == [("train/ape/000.png", 0), ("train/bee/003.png", 1), ("train/cow/011.png", 2)]
    experiment = load_experiment(workplace.experiment)
    assert experiment.labels("l").shown == "few + unlabelled"
    workplace.make("big")
    workplace.make("l")
    first = experiment.spec("l").digest
    shutil.move(path, path.with_name("moved.txt"))
    workplace.edit("few.txt", "moved.txt")
    assert load_experiment(workplace.experiment).spec("l").digest == first
    path.with_name("moved.txt").write_text("ape/000.png\n")
    assert load_experiment(workplace.experiment).spec("l").digest != first


def test_a_list_may_lie_below_the_home_folder(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(listed(workplace, "ape/000.png\n").parent))
    workplace.edit(str(workplace.folder / "few.txt"), "~/few.txt")
    assert (training_images(workplace.job("l")).labels != HIDDEN).sum() == 1


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("ape/000.png\nape/999.png\n", r"l\.labels: .*few\.txt:2: 'ape/999\.png' is no training image with a label"),
        ("000.png\n", "few.txt:1: '000.png' is several training images; write its path, as 'train/ape/000.png'"),
        ("ape/000.png\ntrain/ape/000.png\n", "few.txt:2: 'train/ape/000.png' was named before"),
        ("\n", "few.txt is empty; write an image a line, or labels: 0"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(workplace, content, line):
    listed(workplace, content)
    with pytest.raises(UserError, match=line):
        training_images(workplace.job("l"))


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ("{list: https://example.org/few.txt}", "labels.list: .*its bytes could be others tomorrow"),
        ("{list: 3}", "labels.list: 3 is not valid; expected text"),
        ("{file: few.txt}", "labels"),
        (
            "{list: none.txt}",
            r"^\S+tiny\.yaml: tiny\.runs\.l\.labels: none.txt cannot be read",
        ),
    ],
)
def test_a_list_that_cannot_be_one_is_refused(workplace, labels, line):
    workplace.edit("  tables:", f"    l: {{model: cifar_resnet8, recipe: tiny, labels: {labels}}}\n  tables:")
    with pytest.raises(UserError, match=line):
        assert load_experiment(workplace.experiment).spec("l").digest == ""
