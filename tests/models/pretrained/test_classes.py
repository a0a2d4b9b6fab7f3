"""Weights for other classes: which of them are a data set's, and a last layer of these alone."""

import pytest
import torch

from distillery.errors import UserError
from distillery.models import create_model
from distillery.models.pretrained.classes import UNKNOWN, keep_classes, match_classes, weights_classes
from distillery.models.pretrained.load import take_weights


@pytest.mark.parametrize(
    ("ours", "row"),
    [
        ("n01443537", 1),  # as Tiny-ImageNet's folders
        ("n02085620-Chihuahua", 151),  # as Stanford Dogs'
        ("011.Goldfinch", 11),  # as CUB-200's
        ("white_shark", 2),  # any of a synset's names
        ("Carduelis carduelis", 11),
        ("crane", None),  # the bird and the machine
        ("fish", None),
        ("n99999999", None),
        ("n99999999-goldfinch", None),  # another synset of that name
    ],
)
def test_a_class_is_found_by_its_wnid_or_by_a_name_that_no_other_has(ours, row):
    found = match_classes(["n01440764", ours], weights_classes("imagenet-1k", {}))
    assert found.rows == (0, row)
    assert found.unknown == ([] if row is not None else [ours])
    assert found.total == 1000
    assert (ours in found.line()) == (row is None)


def test_the_same_text_goes_before_names(tmp_path):
    (tmp_path / "classes.txt").write_text("crane\nCrane, machine\nbee\n")
    theirs = weights_classes(str(tmp_path / "classes.txt"), {})
    assert match_classes(["bee", "crane"], theirs).rows == (2, 0)


def test_of_names_alone_a_class_is_found_behind_its_wnid(tmp_path):
    (tmp_path / "classes.txt").write_text("goldfinch\nbee\n")
    assert match_classes(["n01531178-goldfinch"], weights_classes(str(tmp_path / "classes.txt"), {})).rows == (0,)


def test_every_list_of_timm_is_known():
    assert [len(weights_classes(f"imagenet-{name}", {})) for name in ("12k", "21k", "22k")] == [11821, 21843, 21841]
    assert weights_classes("none", {}) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (
            ["a", "b"],
            ["c", "d"],
            "none of the data set's 2 classes, 'a' for instance, is among the 2 of the weights",
        ),
        (
            ["a", "b"],
            ["a", "b", "a"],
            "'a' of the data set stands 2 times among those of the weights, as numbers 0 and 2",
        ),
        (["A", "a."], ["a, b", "c"], "'A' and 'a.' of the data set are both 'a, b' of the weights, which cannot tell"),
    ],
)
def test_classes_that_cannot_be_told_apart_and_none_at_all_are_refused(ours, theirs, line):
    with pytest.raises(UserError, match=line):
        match_classes(ours, theirs)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a\n\nb\n", "classes.txt:2: is empty"),
        ("\n", "classes.txt is empty"),
        (None, "classes.txt cannot be read: No such file"),
    ],
)
def test_a_list_with_gaps_is_refused(tmp_path, content, line):
    if content is not None:
        (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(UserError, match=line):
        weights_classes(str(tmp_path / "classes.txt"), {})
    with pytest.raises(UserError, match="names are known of a run's weights only"):
        weights_classes("names", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", ["torchvision:squeezenet1_0", "resnet18", "levit_128s", "cifar_resnet8", "convnext_atto"]
)
def test_kept_classes_are_answered_as_by_the_whole_network_and_renormalised(model):
    donor, network = (create_model(model, classes).eval() for classes in (7, 3))
    found = match_classes(["c5", "x", "c2"], [f"c{number}" for number in range(7)])
    keep_classes(network, donor, found, fill=True)
    images = torch.randn(2, 3, 224 if model == "levit_128s" else 64, 224 if model == "levit_128s" else 64)
    with torch.no_grad():
        whole, kept = donor(images), network(images)
    torch.testing.assert_close(kept[:, [0, 2]], whole[:, [5, 2]])
    # SqueezeNet ends with a ReLU: its terms leave the class out all the same.
    assert (kept[:, 1] == (0.0 if "squeezenet" in model else UNKNOWN)).all()


def test_rows_that_will_be_trained_stay_as_they_were_drawn_where_the_weights_know_nothing():
    donor, network = (create_model("cifar_resnet8", classes) for classes in (7, 3))
    before = network.state_dict()["fc.weight" if "fc.weight" in network.state_dict() else "linear.weight"].clone()
    keep_classes(network, donor, match_classes(["c5", "x", "c2"], [f"c{number}" for number in range(7)]), fill=False)
    after = network.state_dict()["fc.weight" if "fc.weight" in network.state_dict() else "linear.weight"]
    assert (after[1] == before[1]).all()
    assert (after[0] != before[0]).any()


def test_weights_without_a_classifier_leave_out_that_of_their_file(tmp_path):
    donor, network = create_model("vit_tiny_patch16_224", 5), create_model("vit_tiny_patch16_224", 0)
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    take_weights(network, str(tmp_path / "weights.pth"), "vit_tiny_patch16_224", new_classifier=True)
    assert (network.state_dict()["norm.weight"] == donor.state_dict()["norm.weight"]).all()


def test_only_networks_of_timm_go_without_a_classifier():
    with pytest.raises(UserError, match="'cifar_resnet8' cannot be built without a classifier; only timm's"):
        create_model("cifar_resnet8", 0)
