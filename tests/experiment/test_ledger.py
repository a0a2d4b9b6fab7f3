"""The ledger: what is in a digest, what is left out, and how two of them are compared."""

from typing import Annotated, ClassVar

import pytest

from distillery.errors import UserError
from distillery.experiment import load_experiment
from distillery.experiment.ledger import differences, digest_of, entry, file_sha256
from distillery.experiment.schema.block import Block, Neutral
from distillery.experiment.schema.experiment import RunConfig
from distillery.experiment.zoo import ZOO


class First(Block):
    rate: float = 0.1


class Later(Block):
    rate: float = 0.1
    shiny: Annotated[int, Neutral(1)] = 1


class Changed(Block):
    rate: float = 0.1
    shiny: Annotated[int, Neutral(1)] = 2


class Raised(First):
    numerics: ClassVar[int | None] = 2


def test_a_default_is_written_out():
    assert entry(First()) == entry(First(rate=0.1)) == {"rate": 0.1}


def test_a_later_key_counts_only_when_it_is_not_neutral():
    assert entry(Later()) == entry(First())
    assert entry(Later(shiny=3)) == {"rate": 0.1, "shiny": 3}


def test_a_changed_default_of_a_later_key_moves_digests_but_its_neutral_value_does_not():
    assert entry(Changed()) == {"rate": 0.1, "shiny": 2}
    assert entry(Changed(shiny=1)) == entry(First())


def test_an_entry_holds_a_raised_integer():
    assert entry(Raised()) == {"rate": 0.1, "numerics": 2}


def test_every_augmentation_and_term_has_an_integer(experiment_folder):
    spec = load_experiment(experiment_folder / "config" / "one.yaml").spec("student").ledger
    assert spec["recipe"]["augment"][0]["numerics"] == 1
    assert {name: term["numerics"] for name, term in spec["objective"].items()} == {"ce": 1, "kd": 1}
    assert spec["teacher"]["objective"] == {"ce": {"weight": 1.0, "label_smoothing": 0.0, "numerics": 1}}


def test_a_network_of_the_zoo_is_held_with_its_arguments(experiment_folder):
    spec = load_experiment(experiment_folder / "config" / "one.yaml").spec("student").ledger
    assert spec["network"] == {**ZOO["cifar_resnet8"].fixed, "numerics": 1}


@pytest.fixture
def experiment_folder(tmp_path):
    (tmp_path / "config" / "recipes").mkdir(parents=True)
    (tmp_path / "config" / "datasets.yaml").write_text("few: {path: data/few}\n")
    (tmp_path / "config" / "recipes" / "short.yaml").write_text(
        "epochs: 1\nbatch: 2\noptimizer: {name: sgd, lr: 0.1}\nschedule: {name: constant}\npreprocess: {size: 8}\n"
        "augment: [{name: horizontal_flip}]\n"
    )
    (tmp_path / "config" / "one.yaml").write_text(
        "one:\n  dataset: few\n  runs:\n"
        f"    taken: {{model: cifar_resnet8, weights: {tmp_path}/a.pth}}\n"
        "    teacher: {model: cifar_resnet8, recipe: short}\n"
        "    student: {model: cifar_resnet8, recipe: short, teacher: teacher, objective: {ce: {}, kd: {}}}\n"
        "    after: {model: cifar_resnet8, recipe: short, teacher: taken, objective: {kd: {}}}\n"
    )
    return tmp_path


def test_imported_weights_count_by_their_bytes(experiment_folder):
    def digests(path):
        config = experiment_folder / "config" / "one.yaml"
        config.write_text(config.read_text().replace(f"{experiment_folder}/a.pth", f"{experiment_folder}/{path}"))
        experiment = load_experiment(config)
        found = experiment.spec("taken").digest, experiment.spec("after").digest
        config.write_text(config.read_text().replace(f"{experiment_folder}/{path}", f"{experiment_folder}/a.pth"))
        return found

    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("c.pth", b"two")):
        (experiment_folder / name).write_bytes(content)
    assert digests("a.pth") == digests("b.pth")
    assert not set(digests("a.pth")) & set(digests("c.pth"))


def test_a_weights_file_that_is_gone_is_named(experiment_folder):
    with pytest.raises(UserError, match=r"^\S+one\.yaml: one\.runs\.taken\.weights: \S+a\.pth cannot be read"):
        _ = load_experiment(experiment_folder / "config" / "one.yaml").spec("after").digest


def test_a_data_set_counts_by_what_decides_its_images(experiment_folder):
    def digest(line):
        (experiment_folder / "config" / "datasets.yaml").write_text(f"few: {line}\n")
        return load_experiment(experiment_folder / "config" / "one.yaml").spec("teacher").digest

    before = digest("{path: data/few}")
    assert digest("{path: elsewhere/few, classes: 3, embed: false, layout: folders}") == before
    assert digest("{path: data/few, holdout: 0.2}") != before


@pytest.mark.parametrize(
    ("keys", "held"),
    [
        ("precision: bf16-mixed, objective: {overhaul: {}}", "bf16-mixed"),
        ("precision: 32-true, objective: {overhaul: {}}", None),
        ("precision: bf16-mixed, objective: {mgd: {}}", None),
    ],
)
def test_connectors_count_where_they_are_not_in_float32(experiment_folder, keys, held):
    page = experiment_folder / "config" / "one.yaml"
    page.write_text(page.read_text() + f"    more: {{model: cifar_resnet8, recipe: short, teacher: teacher, {keys}}}\n")
    assert load_experiment(page).spec("more").ledger.get("connectors") == held


def test_a_file_is_hashed_again_when_it_has_changed(tmp_path):
    path = tmp_path / "weights"
    assert file_sha256(path) is None
    path.write_bytes(b"one")
    first = file_sha256(path)
    path.write_bytes(b"three")
    assert file_sha256(path) != first
    assert file_sha256(tmp_path) is None


def test_differences_name_the_keys():
    before = {"seed": 0, "recipe": {"optimizer": {"lr": 0.1}, "augment": [{"p": 0.5}]}, "gone": None}
    now = {"seed": 0, "recipe": {"optimizer": {"lr": 0.05}, "augment": [{"p": 0.4}]}, "new": True}
    assert differences(before, now) == [
        "recipe.optimizer.lr: 0.1 -> 0.05",
        "recipe.augment.0.p: 0.5 -> 0.4",
        "gone: null -> absent",
        "new: absent -> true",
    ]
    assert differences(now, now) == []


def test_the_order_of_keys_changes_no_digest():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 2, "b": 1})


def test_the_keys_of_a_run_are_all_in_its_ledger(experiment_folder):
    """A key of a run that is in no digest would let old results pass for new ones."""
    held = set(load_experiment(experiment_folder / "config" / "one.yaml").spec("student").ledger)
    # Keys that came later are held where they say something (few labels, and how weights are taken from a file).
    later = {"labels", "images", "labelled_share", "nest", "prefix", "ignore", "classes", "teacher_mean"}
    assert set(RunConfig.model_fields) - {"seeds"} - later <= held
