"""What training is fed: faults name the file and the key, and loaders are kept from epoch to epoch."""

import json

import pytest
import torch

from distillery.errors import UserError
from distillery.experiment.schema.recipe import Mix
from distillery.results import write_sealed
from distillery.training import inputs
from distillery.training.mixing import Mixing


def refusal(workplace, **machine):
    with pytest.raises(UserError) as caught:
        workplace.make(**machine)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{workplace.experiment}: tiny.runs.small.")


def test_a_constant_channel_is_refused_in_one_line(workplace):
    path = workplace.results / "datasets/tiny/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["statistics"]["std"][2] = 0.0
    write_sealed(path, {key: value for key, value in manifest.items() if key != "seal"})
    message = refusal(workplace)
    assert message.startswith("preprocess.normalize: the training images' deviations are (")
    assert "0.0) (red, green, blue), and nothing can be divided by 0; write normalize: none" in message


def test_a_last_batch_too_small_for_its_parts_is_refused(workplace):
    workplace.edit_recipe("batch: 35\ndrop_last: false")
    assert refusal(workplace, device_batch=5).startswith(
        "batch: with 35, the last of an epoch's 36 images make a batch of 1, too few for 1 processes x 7 micro-batches"
    )


def test_a_single_image_has_none_to_be_mixed_with(workplace):
    workplace.edit_recipe("mix: {mixup: 0.8}")
    assert refusal(workplace, device_batch=1).startswith("--device-batch: 1 image has none to be mixed with (")
    workplace.make(device_batch=3)


def test_validation_keeps_its_loader_from_epoch_to_epoch(workplace, monkeypatch):
    made = []
    original = inputs.eval_loader

    def count(*arguments, **options):
        made.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr(inputs, "eval_loader", count)
    workplace.make(loader="torch")
    assert len(json.loads((workplace.results / "tiny/small/seed0/run.json").read_text())["sessions"]) == 1
    assert len(made) == 1
    assert made[0]["persistent"]


def test_lit_images_train_and_are_mixed_as_the_floats_they_are(workplace):
    path = workplace.folder / "config/recipes/tiny.yaml"
    recipe = path.read_text().partition("augment:")[0]
    path.write_text(recipe + "augment: [{name: lighting, std: 0.5}]\nmix: {mixup: 0.8}\n")
    workplace.make()
    assert len((workplace.results / "tiny/small/seed0/history.csv").read_text().splitlines()) == 3
    mixing = Mixing(Mix(mixup=0.8), 3, 0)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 0])
    mixed = [mixing(shown, labels, 0, 0)[0] for shown in (images, images.float() / 255)]
    torch.testing.assert_close(*mixed)
