"""The sheet shows what training really sees."""

import numpy as np
from PIL import Image

from distillery.data.arrow import ArrowImages
from distillery.data.contact_sheet import EPOCHS, draw_contact_sheet
from distillery.data.loader import train_loader
from distillery.data.orders import shuffled_order
from distillery.data.samplers import GlobalBatches
from distillery.data.transforms import train_transform
from distillery.experiment.schema.recipe import Recipe

RECIPE = Recipe.model_validate(
    {
        "epochs": 1,
        "batch": 4,
        "optimizer": {"name": "sgd", "lr": 0.1},
        "schedule": {"name": "constant"},
        "preprocess": {"size": 96},
        "augment": [{"name": "random_resized_crop"}, {"name": "horizontal_flip"}],
    }
)


def windows(sheet, tile, found):
    """Where a picture stands on the sheet: the corners of exact matches."""
    first = np.argwhere((sheet == found[0, 0]).all(-1))
    return [
        (y, x) for y, x in first.tolist() if (sheet[y : y + tile, x : x + tile].shape == found.shape)
        and (sheet[y : y + tile, x : x + tile] == found).all()
    ]  # fmt: skip


def test_a_contact_sheet_shows_the_epochs_of_training(place):
    manifest = place.fill(train=1).prepare()
    images = ArrowImages(place.output, manifest, "train")
    draw_contact_sheet(manifest, images, "toy-recipe", RECIPE, place.folder / "out" / "sheet.png", seed=7)
    sheet = np.asarray(Image.open(place.folder / "out" / "sheet.png").convert("RGB"))
    batches = GlobalBatches(shuffled_order(2, 7), 2, 2)
    loader = train_loader(images, train_transform(RECIPE.preprocess, RECIPE.augment), batches, 7, 0, pin_memory=False)
    corners = []
    for epoch in range(EPOCHS):
        batches.start(epoch)
        (batch,) = list(loader)
        for index, square in zip(batch.indices.tolist(), batch.images, strict=True):
            (corner,) = windows(sheet, 96, square.permute(1, 2, 0).numpy())
            corners.append((index, epoch, corner))
    rows = {index: {corner[0] for found, _, corner in corners if found == index} for index in (0, 1)}
    assert len(rows[0]) == len(rows[1]) == 1
    assert max(rows[0]) < min(rows[1])
    columns = [corner[1] for index, _, corner in corners if index == 0]
    assert columns == sorted(set(columns))


def test_many_classes_are_spread_over_the_rows(place):
    classes = tuple(f"class{number:02d}" for number in range(25))
    manifest = place.fill(train=1, val=1, classes=classes).prepare()
    images = ArrowImages(place.output, manifest, "train")
    draw_contact_sheet(manifest, images, "toy-recipe", RECIPE, place.folder / "sheet.png")
    assert Image.open(place.folder / "sheet.png").height == 40 + 10 * 102 + 6
