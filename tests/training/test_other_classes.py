"""Weights that know other classes, or none, and what they teach."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.training.weights import blind, make_elsewhere, more_validation_images

from distillery.data.prepare import prepare_dataset
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.training import initial
from distillery.training.neighbours import Neighbours

pytestmark = pytest.mark.slow


@pytest.fixture
def other_classes(workplace):
    """Weights of a network that knows five classes, the three of the data set among them in another order."""
    workplace.make("big")
    state = load_file(workplace.results / "tiny/big/seed0/weights.safetensors")
    head = [name for name, value in state.items() if value.shape[:1] == (3,) and not name.startswith("conv")]
    order = [4, 0, 3]  # of ape, bee, cow
    for name in head[-2:]:
        rows = torch.full((5, *state[name].shape[1:]), 0.5)
        rows[order] = state[name]
        state[name] = rows
    save_file(state, workplace.folder / "five.safetensors")
    (workplace.folder / "five.txt").write_text("Bee, honey bee\nzebra\ngnu\ncow\nape\n")
    return f"weights: {workplace.folder}/five.safetensors, preprocess: {{size: 8}}"


def taught_by(workplace, line, keys="objective: {ce: {}, kd: {}}", name="five"):
    workplace.edit(
        "  tables:",
        f"    {name}: {{model: cifar_resnet14, {line}}}\n"
        f"    by-{name}: {{model: cifar_resnet8, recipe: tiny, teacher: {name}, {keys}}}\n  tables:",
    )
    workplace.make(name)
    return workplace.make(f"by-{name}")


def test_a_teacher_of_more_classes_teaches_as_one_of_the_data_sets(workplace, other_classes, capsys):
    taught_by(workplace, f"{other_classes}, classes: {workplace.folder}/five.txt")
    assert "of 5 classes of the weights, 3 are those of the data set's 3" in capsys.readouterr().err
    record, teacher = (
        json.loads((workplace.results / "tiny" / run / "seed0/run.json").read_text()) for run in ("by-five", "five")
    )
    assert teacher["class_names"] == ["ape", "bee", "cow"]
    assert teacher["weights_classes"] == 5
    assert teacher["unknown_classes"] == []
    plain = workplace.make("taught", results="plain")
    assert record["teacher"]["top1"] == json.loads((plain / "run.json").read_text())["teacher"]["top1"] == 75
    assert evaluate_run(load_experiment(workplace.experiment), "five", 0, workplace.results)["top1"] == 75


def test_the_bytes_of_a_list_decide_a_run_and_not_its_place(workplace, other_classes):
    listing = workplace.folder / "five.txt"

    def digest(path):
        workplace.experiment.write_text(
            f"tiny: {{dataset: tiny, runs: {{five: {{model: cifar_resnet14, {other_classes}, classes: {path}}}}}}}\n"
        )
        return load_experiment(workplace.experiment).spec("five").digest

    first = digest(listing)
    shutil.copy(listing, workplace.folder / "same.txt")
    assert digest(workplace.folder / "same.txt") == first
    (workplace.folder / "same.txt").write_text("ape\nbee\ncow\nx\ny\n")
    assert digest(workplace.folder / "same.txt") != first
    with pytest.raises(UserError, match=r"^\S+: tiny\.runs\.five\.classes: .*none\.txt cannot be read"):
        digest(workplace.folder / "none.txt")


def test_classes_in_the_wrong_order_are_at_chance(workplace, other_classes, capsys):
    (workplace.folder / "five.txt").write_text("ape\nx\ny\nbee\ncow\n")
    taught_by(workplace, f"{other_classes}, classes: {workplace.folder}/five.txt")
    # As many images as here are only warned of.
    assert "are the classes in the order of the weights" in capsys.readouterr().out
    more_validation_images(workplace)
    shutil.rmtree(workplace.results / "tiny" / "by-five")
    workplace.make("five")
    with pytest.raises(UserError, match=r"runs\.by-five\.teacher: five scores .* classes in"):
        workplace.make("by-five")


def test_a_class_that_would_move_the_cursor_is_spelt_out(workplace, other_classes, capsys):
    (workplace.folder / "data/tiny/train/cow").rename(workplace.folder / "data/tiny/train/c\x1b[2Jow")
    (workplace.folder / "data/tiny/val/cow").rename(workplace.folder / "data/tiny/val/c\x1b[2Jow")
    dataset = Dataset(path=str(workplace.folder / "data/tiny"))
    prepare_dataset("tiny", dataset, workplace.results / "datasets/tiny", workers=1)
    line = f"{other_classes}, classes: {workplace.folder}/five.txt"
    workplace.edit("  tables:", f"    five: {{model: cifar_resnet14, {line}}}\n  tables:")
    workplace.make("five")
    assert "they do not know 1: c\\x1b[2Jow" in (said := capsys.readouterr().err)
    assert "\x1b" not in said


def test_a_teacher_that_lacks_a_class_teaches_the_others(workplace, other_classes, capsys):
    (workplace.folder / "five.txt").write_text("bee\nzebra\ngnu\ncat\nape\n")
    line = f"{other_classes}, classes: {workplace.folder}/five.txt"
    taught_by(workplace, line)
    assert "they do not know 1: cow" in capsys.readouterr().err
    record = json.loads((workplace.results / "tiny/by-five/seed0/run.json").read_text())
    assert record["teacher"]["top1"] == 50
    workplace.edit("objective: {ce: {}, kd: {}}", "objective: {ce: {}, srrl: {}}")
    with pytest.raises(UserError, match=r"by-five\.objective\.srrl: five does not know 1 of the classes, as 'cow'"):
        workplace.make("by-five")


@pytest.mark.parametrize("keys", ["", ", classes: names", ", preprocess: {size: 8}"])
def test_what_weights_do_not_know_they_do_not_know_as_another_run(workplace, other_classes, keys, capsys):
    (workplace.folder / "five.txt").write_text("bee\nzebra\ngnu\ncat\nape\n")
    workplace.edit(
        "  tables:",
        f"    five: {{model: cifar_resnet14, {other_classes}, classes: {workplace.folder}/five.txt}}\n"
        f"    again: {{model: cifar_resnet14, weights: 'run:five'{keys}}}\n  tables:",
    )
    workplace.make("five")
    record = json.loads((workplace.make("again") / "run.json").read_text())
    assert record["unknown_classes"] == ["cow"]
    assert capsys.readouterr().err.count("they do not know 1: cow") == 2


def test_weights_of_other_classes_may_be_trained_further(workplace, other_classes):
    workplace.edit(
        "  tables:",
        f"    more: {{model: cifar_resnet14, recipe: tiny, {other_classes}, "
        f"classes: {workplace.folder}/five.txt, optimizer: {{name: sgd, lr: 1.0e-6}}}}\n  tables:",
    )
    workplace.make("more")
    assert evaluate_run(load_experiment(workplace.experiment), "more", 0, workplace.results)["top1"] > 70


def test_a_run_elsewhere_says_its_own_classes(workplace, elsewhere):
    with pytest.raises(UserError, match=r"weights for 3 classes .*, and not for 1000; say"):
        make_elsewhere(elsewhere, workplace.results, "weights: 'run:tiny/big', classes: imagenet-1k")
    record = make_elsewhere(elsewhere, workplace.results, "weights: 'run:tiny/big', classes: names")
    assert record["unknown_classes"] == ["bye"]
    # With the mean and deviation that it was trained with, not those of the brighter images.
    big = json.loads((workplace.results / "tiny/big/seed0/run.json").read_text())
    assert record["statistics"] == big["statistics"]


@pytest.mark.parametrize("file", [False, True])
def test_a_list_that_contradicts_the_run_of_the_weights_is_refused(workplace, elsewhere, file):
    (workplace.folder / "three.txt").write_text("bee\nape\ncow\n")
    weights = str(workplace.results / "tiny/big/seed0/weights.safetensors") if file else "run:tiny/big"
    line = f"weights: '{weights}', classes: {workplace.folder}/three.txt, preprocess: {{size: 8}}"
    with pytest.raises(UserError, match=r"classes: number 0 is 'bee', but 'ape' in the run that made the weights"):
        make_elsewhere(elsewhere, workplace.results, line)
    (workplace.folder / "three.txt").write_text("Ape, monkey\nbee\ncow\n")
    assert make_elsewhere(elsewhere, workplace.results, line)["unknown_classes"] == ["bye"]


HEADLESS = "weights: {folder}/vit.pth, preprocess: {{size: 32}}, classes: none"


def vit_beside(workplace):
    from distillery.models import create_model

    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 3}
    torch.save(create_model("vit_tiny_patch16_224", 7, **arguments).state_dict(), workplace.folder / "vit.pth")
    text = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    workplace.edit("{model: cifar_resnet14, recipe: tiny, seeds: [0]}", "{model: cifar_resnet14, recipe: tiny}")
    return f"{HEADLESS.format(folder=workplace.folder)}, model_args: {{{text}}}"


@pytest.mark.parametrize("keys", ["objective: {ce: {}, rkd: {}}", "objective: {rkd: {}, sp: {}}, labels: 0"])
def test_a_teacher_without_classifier_teaches_by_features(workplace, shown, capsys, keys):
    line = vit_beside(workplace)
    workplace.edit(
        "  tables:",
        f"    giant: {{model: vit_tiny_patch16_224, {line}}}\n"
        f"    by-giant: {{model: cifar_resnet8, recipe: tiny, teacher: giant, {keys}}}\n  tables:",
    )
    teacher = json.loads((workplace.make("giant") / "run.json").read_text())
    assert (teacher["classes"], teacher["class_names"]) == (0, [])
    record = json.loads((workplace.make("by-giant") / "run.json").read_text())
    assert record["teacher"] == {"run": "giant", "knn_of_validation": 100.0}
    assert shown == {(3, 32, 32)}
    said = capsys.readouterr().out
    assert "giant has no classifier; it teaches by its features of 32 pixels, by which 100.00 % of 12 " in said
    assert "warning: teacher" not in said
    experiment = load_experiment(workplace.experiment)
    assert evaluate_run(experiment, "giant", 0, workplace.results)["top1"] is None
    measured = evaluate_run(experiment, "by-giant", 0, workplace.results)
    assert measured["agreement"] is None
    assert measured["top1"] >= 0


@pytest.mark.parametrize("teacher", ["giant", "{run: giant, answers: bank}"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0.0, r"runs\.by-giant\.teacher: by the features of giant, [\d.]+ % of 24 .* always may \(33\.33 %\); are the"),
        (3e38, r"giant/seed0/weights\.safetensors: the network's embeddings are NaN or infinite"),
    ],
)
def test_a_teacher_without_classifier_whose_features_tell_nothing_is_refused(workplace, teacher, number, said):
    line = vit_beside(workplace)
    student = f"{{model: cifar_resnet8, recipe: tiny, teacher: {teacher}, objective: {{rkd: {{}}}}}}"
    workplace.edit(
        "  tables:", f"    giant: {{model: vit_tiny_patch16_224, {line}}}\n    by-giant: {student}\n  tables:"
    )
    more_validation_images(workplace)
    blind(workplace.make("giant"), "norm.", number)
    with pytest.raises(UserError, match=said):
        workplace.make("by-giant")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Neighbours(24, 18, 18, 1 / 3, True), "tells classes no better apart than 8 x 8 pixels do"),
        (Neighbours(0, 0, 0, 0.0, True), "what these know is not measured: no two classes have two"),
    ],
)
def test_what_is_unsure_of_a_teacher_without_classifier_is_said(workplace, capsys, monkeypatch, found, said):
    line = vit_beside(workplace)
    student = "{model: cifar_resnet8, recipe: tiny, teacher: giant, objective: {rkd: {}}}"
    workplace.edit(
        "  tables:", f"    giant: {{model: vit_tiny_patch16_224, {line}}}\n    by-giant: {student}\n  tables:"
    )
    workplace.make("giant")
    monkeypatch.setattr(initial, "ask_neighbours", lambda *_: found)
    workplace.make("by-giant")
    assert said in capsys.readouterr().out


def test_weights_without_a_classifier_are_trained_further_with_a_new_one_alone(workplace):
    line = vit_beside(workplace)
    arguments = line.partition("model_args")[2]
    workplace.edit(
        "  tables:",
        f"    giant: {{model: vit_tiny_patch16_224, {line}}}\n"
        "    more: {model: vit_tiny_patch16_224, recipe: tiny, preprocess: {size: 32}, weights: 'run:giant', "
        f"new_classifier: false, model_args{arguments}}}\n  tables:",
    )
    workplace.make("giant")
    with pytest.raises(UserError, match=r"weights\.safetensors: .*head\."):
        workplace.make("more")
    workplace.edit("new_classifier: false", "new_classifier: true")
    workplace.make("more")


@pytest.mark.parametrize(
    ("line", "keys", "said"),
    [
        ("recipe: tiny, classes: imagenet-1k", "", "classes: there are no `weights` that could know other classes"),
        ("weights: a.pth, recipe: tiny, classes: none", "", "classes: a network without classifier is not trained"),
        ("weights: a.pth, recipe: tiny, new_classifier: true, classes: names", "", "classes: names has no effect with"),
        ("weights: a.pth, classes: imagenet1k", "", "classes: 'imagenet1k' is not valid; expected imagenet-1k, "),
        (
            "weights: a.pth, classes: none",
            "kd: {}",
            "objective.kd: learns from the teacher's logits, but 'five'",
        ),
        ("weights: a.pth, classes: none", "srrl: {}", "objective.srrl: learns from the teacher's logits, but 'five'"),
    ],
)
def test_what_weights_may_not_say_of_their_classes_is_refused(workplace, line, keys, said):
    student = f"    s: {{model: cifar_resnet8, recipe: tiny, teacher: five, objective: {{{keys}}}}}\n" if keys else ""
    workplace.edit("  tables:", f"    five: {{model: cifar_resnet14, {line}}}\n{student}  tables:")
    with pytest.raises(UserError) as error:
        load_experiment(workplace.experiment)
    assert said in str(error.value)
