"""How networks begin, and what a teacher must be before anybody learns from it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from scipy.special import bdtrc
from tests.training.weights import blind, make_elsewhere, more_validation_images

from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.results import write_sealed
from distillery.training.initial import CHANCE, is_chance

pytestmark = pytest.mark.slow

TALL = "{model: cifar_resnet14, recipe: tiny, seeds: [0], preprocess: {size: 16}}"


def teach_at_another_size(workplace, teacher=TALL, keys="objective: {ce: {}, kd: {}}"):
    workplace.edit("big:    {model: cifar_resnet14, recipe: tiny, seeds: [0]}", f"big:    {teacher}")
    workplace.edit("  tables:", f"    other: {{model: cifar_resnet8, recipe: tiny, teacher: big, {keys}}}\n  tables:")
    workplace.make("big")
    return json.loads((workplace.make("other") / "run.json").read_text())


@pytest.mark.parametrize(
    "keys",
    [
        "objective: {ce: {}, kd: {}}, mix: {mixup: 0.8, cutmix: 1.0}",
        "objective: {ce: {}, mgd: {}}",
        "objective: {ce: {}, kd: {}}, augment: [{name: random_resized_crop}, {name: lighting}]",
    ],
)
def test_a_teacher_of_another_size_sees_and_is_measured_on_its_own_squares(workplace, shown, capsys, keys):
    record = teach_at_another_size(workplace, keys=keys)
    assert shown == {(3, 16, 16)}
    assert record["teacher"]["run"] == "big"
    assert record["teacher"]["top1"] == record["teacher"]["top1_as_it_teaches"]
    assert "on those it teaches by (its own squares of 16 pixels)" in capsys.readouterr().out


def test_a_teacher_that_takes_one_size_only_teaches_a_student_of_another(workplace, shown):
    arguments = "{img_size: 16, patch_size: 8, depth: 1, embed_dim: 24, num_heads: 2}"
    vit = f"{{model: vit_tiny_patch16_224, model_args: {arguments}, recipe: tiny, epochs: 20, preprocess: {{size: 16}},"
    teach_at_another_size(workplace, f"{vit} seeds: [0], optimizer: {{name: adamw, lr: 0.01}}}}")
    assert shown == {(3, 16, 16)}


def test_a_teacher_with_another_way_to_resize_is_measured_in_both(workplace, shown):
    other = "{model: cifar_resnet14, recipe: tiny, preprocess: {size: 6, resize: 7, interpolation: nearest}}"
    record = teach_at_another_size(workplace, other, "preprocess: {size: 6, resize: 7}, objective: {ce: {}, kd: {}}")
    assert set(record["teacher"]) == {"run", "top1", "top1_as_it_teaches"}
    assert shown == {(3, 6, 6)}


def test_only_runs_whose_teacher_sees_other_squares_have_another_digest(workplace):
    def teacher_images(keys):
        workplace.edit("seeds: [0]}", f"seeds: [0], {keys}}}")
        found = load_experiment(workplace.experiment).spec("taught").ledger.get("teacher_images")
        workplace.edit(f"seeds: [0], {keys}}}", "seeds: [0]}")
        return found

    assert teacher_images("preprocess: {size: 16}") == "its own"
    assert teacher_images("preprocess: {size: 8, resize: 12}") == "its own"
    assert teacher_images("preprocess: {size: 8, normalize: imagenet}") is None
    assert teacher_images("preprocess: {size: 8, interpolation: bicubic}") is None
    path = workplace.folder / "config/recipes/tiny.yaml"
    path.write_text(path.read_text().partition("augment:")[0] + "augment: [{name: random_resized_crop}]\n")
    assert teacher_images("preprocess: {size: 16}") == "its own"
    assert teacher_images("preprocess: {size: 8, resize: 12}") is None


def test_a_teacher_that_guesses_is_refused(workplace):
    more_validation_images(workplace)
    blind(workplace.make("big"))
    with pytest.raises(UserError, match=r"runs\.taught\.teacher: big scores 33\.33 % top-1 on the 24 .* classes in"):
        workplace.make("taught")


def test_of_a_few_images_a_guess_is_only_a_warning(workplace, capsys):
    blind(workplace.make("big"))
    workplace.make("taught")
    assert "warning: " in (said := capsys.readouterr().out)
    assert "big scores 33.33 % top-1 on the 12 validation images" in said


@pytest.mark.parametrize(
    ("correct", "images", "classes", "guesses"),
    [
        (0, 10_000, 10, True),
        (1_000, 10_000, 10, True),
        (1_100, 10_000, 10, False),
        (8_320, 10_000, 10, False),
        (8, 12, 3, False),
        (5, 12, 3, True),
        (2, 2, 2, False),  # all right, and too few to prove it
        (1, 2, 2, True),
        (10, 10_000, 1000, True),
        (30, 10_000, 1000, False),
    ],
)
def test_chance_is_what_guessing_may_reach(correct, images, classes, guesses):
    assert is_chance(correct, images, 1 / classes) is guesses


@pytest.mark.parametrize("classes", [2, 10, 200])
def test_chance_is_judged_exactly_near_its_bound(classes):
    for images in (20, 359, 5_000):
        for correct in range(0, images + 1, max(1, images // 300)):
            certain = classes**-images > CHANCE
            by_chance = correct == 0 or bdtrc(correct - 1, images, 1 / classes) > CHANCE
            assert certain or is_chance(correct, images, 1 / classes) is bool(by_chance)


@pytest.mark.parametrize(("published", "said"), [("0.5", True), ("99.5", False)])
def test_a_teacher_that_misses_its_published_number_is_said(workplace, capsys, published, said):
    folder = workplace.experiment.parent / "published"
    folder.mkdir()
    header = "run,metric,value,std,n,selection,source\n"
    (folder / "tiny.csv").write_text(f"{header}big,error1,{published},,,,a paper\n")
    workplace.make("big")
    workplace.make("taught")
    line = f"big scores 75.00 % top-1, but {folder / 'tiny.csv'}: row 2 says 99.5"
    assert (line in capsys.readouterr().out) is said


def test_imported_weights_that_miss_their_published_number_are_said_when_they_are_measured(workplace, capsys):
    workplace.edit("  tables:", "    taken: {model: cifar_resnet14, weights: 'run:big'}\n  tables:")
    folder = workplace.experiment.parent / "published"
    folder.mkdir()
    (folder / "tiny.csv").write_text("run,metric,value,std,n,selection,source\ntaken,top1,99.5,,,,a paper\n")
    workplace.make("big")
    workplace.make("taken")
    evaluate_run(load_experiment(workplace.experiment), "taken", 0, workplace.results)
    assert "warning: taken scores 75.00 % top-1, but" in capsys.readouterr().err


@pytest.mark.parametrize("keys", ["", ", recipe: tiny"])
@pytest.mark.parametrize("file", [False, True])
def test_weights_for_other_classes_are_refused(workplace, elsewhere, keys, file):
    weights = str(workplace.results / "tiny/big/seed0/weights.safetensors") if file else "run:tiny/big"
    line = f"weights: '{weights}'{keys}" + (", preprocess: {size: 8}" if file and not keys else "")
    with pytest.raises(UserError, match=r"other\.runs\.taken\.weights: .*: number 0 is 'ape', but 'bee' in other; to"):
        make_elsewhere(elsewhere, workplace.results, line)
    if keys:
        make_elsewhere(elsewhere, workplace.results, f"{line}, new_classifier: true")


@pytest.mark.parametrize("keys", ["", ", recipe: tiny"])
@pytest.mark.parametrize("file", [False, True])
def test_weights_that_were_replaced_since_are_not_begun_with(workplace, keys, file):
    workplace.make("big")
    path = workplace.results / "tiny/big/seed0/weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    line = f"weights: '{path if file else 'run:big'}'{keys}" + (", preprocess: {size: 8}" if file and not keys else "")
    workplace.edit("  tables:", f"    taken: {{model: cifar_resnet14, {line}}}\n  tables:")
    with pytest.raises(UserError, match=r"weights\.safetensors: not the weights that its run\.json is about"):
        workplace.make("taken")


@pytest.mark.parametrize("keys", ["", ", recipe: tiny"])
def test_a_part_of_a_file_may_be_chosen_for_an_import_and_for_a_beginning(workplace, keys):
    workplace.make("big")
    state = load_file(workplace.results / "tiny/big/seed0/weights.safetensors")
    path = workplace.folder / "w.pth"
    torch.save({"first": state, "second": {f"net.{name}": value * 0 for name, value in state.items()}}, path)
    line = f"weights: '{path}', nest: first, ignore: [nothing]{keys}" + ("" if keys else ", preprocess: {size: 8}")
    workplace.edit("  tables:", f"    taken: {{model: cifar_resnet14, {line}}}\n  tables:")
    first = json.loads((workplace.make("taken") / "run.json").read_text())
    workplace.edit("nest: first", "nest: second")
    second = json.loads((workplace.make("taken") / "run.json").read_text())
    assert first["digest"] != second["digest"]
    assert first["weights_sha256"] != second["weights_sha256"]


def test_results_without_names_of_classes_are_taken_as_before(workplace, elsewhere):
    path = workplace.results / "tiny/big/seed0/run.json"
    record = json.loads(path.read_text())
    del record["class_names"]
    write_sealed(path, record)
    make_elsewhere(elsewhere, workplace.results, "weights: 'run:tiny/big'")


def test_imported_weights_keep_the_statistics_that_they_were_trained_with(workplace, elsewhere):
    path = workplace.results / "tiny/big/seed0/run.json"
    record = json.loads(path.read_text())
    del record["class_names"]
    write_sealed(path, record)
    taken = make_elsewhere(elsewhere, workplace.results, "weights: 'run:tiny/big'")
    assert taken["statistics"] == record["statistics"]
    assert taken["spec"]["statistics"] == "of the weights"
    anew = make_elsewhere(elsewhere, workplace.results, "weights: 'run:tiny/big', preprocess: {size: 8}")
    assert anew["statistics"] != record["statistics"]
    assert "statistics" not in anew["spec"]
