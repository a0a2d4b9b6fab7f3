"""How networks begin, and what a teacher must be before anybody learns from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import bdtrc

from distillery.data.prepare import prepare_dataset
from distillery.distill.teacher import Teacher
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.experiment.schema.dataset import Dataset
from distillery.results import file_hash, write_sealed
from distillery.training import initial
from distillery.training.initial import CHANCE, is_chance
from distillery.training.job import Job, Machine
from distillery.training.neighbours import Neighbours
from distillery.training.run import make_run

pytestmark = pytest.mark.slow

TALL = "{model: cifar_resnet14, recipe: tiny, seeds: [0], preprocess: {size: 16}}"


@pytest.fixture
def shown(monkeypatch):
    """The sizes of what teachers are shown."""
    sizes, original = set(), Teacher.__call__

    def call(self, images):
        sizes.add(tuple(images.shape[1:]))
        return original(self, images)

    monkeypatch.setattr(Teacher, "__call__", call)
    return sizes


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


def blind(teacher, layer="fc", number=0.0):
    state = load_file(teacher / "weights.safetensors")
    blank = {name: torch.full_like(value, number) if name.startswith(layer) else value for name, value in state.items()}
    save_file(blank, teacher / "weights.safetensors")
    record = json.loads((teacher / "run.json").read_text())
    write_sealed(teacher / "run.json", record | {"weights_sha256": file_hash(teacher / "weights.safetensors")})


def more_validation_images(workplace):
    """As many as it takes to refuse one that guesses."""
    folder = workplace.folder / "more"
    shutil.copytree(workplace.folder / "data" / "tiny", folder)
    for path in list(folder.glob("val/*/*.png")):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    dataset = Dataset(path=str(folder))
    prepare_dataset("tiny", dataset, workplace.results / "datasets/tiny", workers=1)


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


@pytest.fixture
def elsewhere(workplace):
    """An experiment on the same images, brightened, of which the first two classes have changed places."""
    for path in (workplace.folder / "data" / "tiny").rglob("*.png"):
        moved = Path(str(path).replace("/tiny/", "/other/").replace("/ape/", "/bye/"))
        moved.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(Image.open(path)) // 2 + 100).save(moved)
    config = workplace.experiment.parent
    line = {"other": {"path": str(workplace.folder / "data" / "other")}}
    (config / "datasets.yaml").write_text((config / "datasets.yaml").read_text() + json.dumps(line)[1:-1] + "\n")
    prepare_dataset("other", Dataset(**line["other"]), workplace.results / "datasets/other", workers=1)
    workplace.make("big")
    return config / "other.yaml"


def make_elsewhere(path, results, line):
    path.write_text(f"other: {{dataset: other, runs: {{taken: {{model: cifar_resnet14, {line}}}}}}}\n")
    job = Job(load_experiment(path), "taken", 0, results, Machine(workers=0, threads=1))
    make_run(job)
    return json.loads((job.folder / "run.json").read_text())


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


# --- weights for other classes, and for none -------------------------------------------------------------------------


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
    with pytest.raises(UserError, match=r"classes: .*none\.txt cannot be read, and its bytes decide the run"):
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
