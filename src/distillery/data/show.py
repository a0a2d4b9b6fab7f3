"""What `distillery data` shows of a prepared data set: its numbers, and samples as training sees them."""

from collections.abc import Iterator
from pathlib import Path

from distillery.data.arrow import ArrowImages
from distillery.data.contact_sheet import draw_contact_sheet
from distillery.data.manifest import load_manifest
from distillery.data.overview import describe_manifest
from distillery.experiment.loading import load_recipe, usual_recipe
from distillery.paths import contact_sheet_path, dataset_folder


def show_dataset(
    dataset: str, recipe: str | None, output: Path | None, config_dir: Path, results: Path
) -> Iterator[str]:
    """Say what a data set holds, and draw samples as a recipe augments them; by default the recipe of most runs."""
    folder = dataset_folder(results, dataset)
    manifest = load_manifest(folder)
    yield describe_manifest(manifest)
    if "train" not in manifest.splits:
        return
    name = recipe or usual_recipe(config_dir, dataset)
    if name is None:
        yield f"\nNo experiment of {config_dir} trains on {dataset}; name a --recipe to see it augmented."
        return
    path = output or contact_sheet_path(results, dataset)
    draw_contact_sheet(
        manifest, ArrowImages(folder, manifest, "train"), name, load_recipe(config_dir, name, "--recipe")[0], path
    )
    yield f"\nSamples as the recipe {name} augments them: {path}"
