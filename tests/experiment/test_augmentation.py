"""Each mistake in a recipe's augmentation gets one line that names the file, the key and what would be right."""

from pathlib import Path

import pytest

from distillery.errors import UserError
from distillery.experiment.reading import validate
from distillery.experiment.schema.recipe import Recipe

RECIPE = {
    "epochs": 1,
    "batch": 4,
    "optimizer": {"name": "sgd", "lr": 0.1},
    "schedule": {"name": "constant"},
    "preprocess": {"size": 16},
}


def read(augment=(), **preprocess):
    recipe = RECIPE | {"preprocess": RECIPE["preprocess"] | preprocess, "augment": list(augment)}
    return validate(Recipe, recipe, Path("recipes/x.yaml"))


@pytest.mark.parametrize(
    ("augment", "preprocess", "message"),
    [
        ([], {"resize": 8}, "preprocess.resize: 8 is not valid; it is smaller than `size`, 16; give at least that"),
        ([], {"rule": "bake", "interpolation": "bicubic"}, "`rule: bake` goes with `interpolation: bilinear` only"),
        ([{"name": "random_crop", "padding": 16, "mode": "reflect"}], {},
         "augment: .* is not valid; random_crop pads by 16, but reflection has 15 pixels at most"),
        ([{"name": "random_resized_crop", "scale": [1.0, 0.1]}], {},
         r"augment.0.scale: \[1.0, 0.1\] is not valid; the smaller comes first"),
        ([{"name": "random_resized_crop", "ratio": [2, 1]}], {}, "augment.0.ratio: .* the smaller comes first"),
        ([{"name": "random_resized_crop", "rule": "bake", "interpolation": "nearest"}], {},
         "augment.0: .* is not valid; `rule: bake` goes with `interpolation: bilinear` only"),
        ([{"name": "random_resized_crop", "rule": "opencv"}], {},
         "augment.0.rule: 'opencv' is not valid; valid: bake, dali, torchvision"),
        ([{"name": "rand_augment", "policy": "rand-x7"}], {}, "augment.0.policy: 'rand-x7' is not valid; join `rand`"),
        ([{"name": "rand_augment", "policy": "rand-m7.5"}], {}, "augment.0.policy: 'rand-m7.5' is not valid"),
        ([{"name": "random_crop", "padding": 2}, {"name": "random_resized_crop"}], {},
         "augment: .* is not valid; random_resized_crop works on the whole image; put it first"),
        ([{"name": "lighting"}, {"name": "horizontal_flip"}], {}, "augment: .* lighting .* put it last"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line(augment, preprocess, message):
    with pytest.raises(UserError, match=rf"^recipes/x.yaml: .*{message}[^\n]*$"):
        read(augment, **preprocess)


@pytest.mark.parametrize(
    "policy",
    ["rand", "rand-m7-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-m15-n2-p0.5-mmax20", "rand-mstd101", "rand-tweights"],
)
def test_a_policy_that_is_let_through_is_one_that_timm_builds(policy):
    from timm.data.auto_augment import rand_augment_transform

    read([{"name": "rand_augment", "policy": policy}])
    assert rand_augment_transform(policy, {"translate_const": 10, "img_mean": (0, 0, 0)}).ops


def test_the_reference_augmentations_are_let_through():
    crop = {"name": "random_resized_crop", "rule": "bake"}
    assert read([crop, {"name": "horizontal_flip"}, {"name": "lighting"}], rule="bake").augment[2].std == 0.1
    assert read([{"name": "random_resized_crop", "rule": "dali", "reduced_decoding": True}]).augment[0].reduced_decoding
