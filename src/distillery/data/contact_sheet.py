"""A picture of what the network sees: samples as they are stored, as they are measured, and as they are augmented."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from distillery.atomic import replace_file
from distillery.data.arrow import ArrowImages
from distillery.data.augment.lighting import add_shifts
from distillery.data.decode import decode_rgb
from distillery.data.loader import generators_kept, seed_sample
from distillery.data.manifest import Manifest
from distillery.data.samplers import Sample
from distillery.data.transforms import eval_transform, train_transform
from distillery.experiment.schema.recipe import Recipe
from distillery.randomness import addressed_permutation

ROWS = 10
EPOCHS = 6
_LEAST_TILE, _LARGEST_TILE = 96, 224
_GAP, _LINE = 6, 20
_PAPER, _INK = "white", "black"


def draw_contact_sheet(
    manifest: Manifest, images: ArrowImages, name: str, recipe: Recipe, path: Path, seed: int = 0
) -> None:
    """Write a PNG: a row for each of up to ten classes, spread over all, with one training image of each.

    The columns are the image as it is stored, as evaluation prepares it, and as training does in six epochs, by the
    addresses that a run of this seed has.

    Raises:
        UserError: the file cannot be written.
    """
    title = f"{manifest.name}, by the recipe {name}: {', '.join(step.name for step in recipe.augment) or 'plain'}"
    tile = min(max(recipe.preprocess.size, _LEAST_TILE), _LARGEST_TILE)
    indices = _samples(manifest, seed)
    columns = ["stored", "evaluated", *(f"epoch {epoch + 1}" for epoch in range(EPOCHS))]
    labels = [manifest.classes[images.labels[index]] for index in indices]
    font = ImageFont.load_default(13)
    margin = int(max(font.getlength(_short(label)) for label in labels)) + 2 * _GAP
    width = max(margin + len(columns) * (tile + _GAP), int(font.getlength(title)) + 2 * _GAP)
    sheet = Image.new("RGB", (width, 2 * _LINE + len(indices) * (tile + _GAP) + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 3), title, _INK, font)
    for column, heading in enumerate(columns):
        pen.text((margin + column * (tile + _GAP), _LINE), heading, _INK, font)
    for row, (index, label) in enumerate(zip(indices, labels, strict=True)):
        top = 2 * _LINE + row * (tile + _GAP)
        pen.text((_GAP, top + tile // 2 - 8), _short(label), _INK, font)
        for column, picture in enumerate(_views(manifest, images, index, recipe, seed)):
            # Small images are shown pixel by pixel, large ones smoothly.
            method = Image.Resampling.NEAREST if max(picture.size) < tile else Image.Resampling.LANCZOS
            shown = ImageOps.contain(picture, (tile, tile), method)
            sheet.paste(shown, (margin + column * (tile + _GAP), top))
    with replace_file(path) as temporary:
        sheet.save(temporary, "png")


def _samples(manifest: Manifest, seed: int) -> list[int]:
    """A training image of each of up to ROWS classes, the classes spread evenly over all."""
    counts = manifest.splits["train"].images_per_class
    starts = np.cumsum([0, *counts]).tolist()
    filled = [label for label, count in enumerate(counts) if count]
    chosen = [filled[len(filled) * row // min(ROWS, len(filled))] for row in range(min(ROWS, len(filled)))]
    return [
        starts[label] + int(addressed_permutation(counts[label], seed, "contact sheet", label)[0]) for label in chosen
    ]


def _views(manifest: Manifest, images: ArrowImages, index: int, recipe: Recipe, seed: int) -> list[Image.Image]:
    encoded = images.encoded(index)
    transform = train_transform(recipe.preprocess, recipe.augment, manifest.statistics.mean)
    views = [decode_rgb(encoded), eval_transform(recipe.preprocess).decode(encoded)]
    with generators_kept():
        for epoch in range(EPOCHS):
            seed_sample(seed, Sample(epoch, index, 0))
            square, shift = transform.decode(encoded), transform.draw_shift()
            if shift is not None:
                square = (add_shifts(square[None], shift[None])[0] * 255).round().clamp(0, 255).byte()
            views.append(square)
    return [Image.fromarray(np.ascontiguousarray(view.permute(1, 2, 0).numpy())) for view in views]


def _short(label: str) -> str:
    return label if len(label) <= 24 else f"{label[:23]}..."
