"""Data sets of the `datasets` library: a name on the hub, or a folder that it can load."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distillery.data.raw import AnyFile, ArrowFile, RawFile
from distillery.data.sources import VALIDATION_NAMES, Scan, listed
from distillery.errors import UserError
from distillery.experiment.schema.dataset import HUB_PREFIX, Dataset


def find_hub(name: str, dataset: Dataset) -> Scan:
    """List the images of ``hub:NAME[:CONFIG][@REVISION]``, which the library downloads or has in its cache.

    The splits are ``train`` and a usual name for validation (or ``val_folder``), the images the only column of images,
    and the labels the only column of classes (or ``label``). With ``split: evaluation``, there are validation images
    only, of the only split where none has a usual name. The image files' own bytes are read from the library's cache,
    where they lie; classes keep the library's order.

    Raises:
        UserError: the data set cannot be loaded, or it is not clear which split or column is meant.
    """
    splits = load_hub(name, dataset)
    if "train" not in splits and dataset.split is None:
        raise UserError(
            f"{dataset.path}: no split 'train'; it has {listed(sorted(splits))}; where it is there to measure imported "
            f"networks on, write `split: evaluation` for {name!r} in datasets.yaml"
        )
    folders = {"train": "train"} if dataset.split is None else {}
    folders["val"] = _validation_split(name, dataset, sorted(splits))
    features = splits[folders["val"]].features
    image = _column(dataset, features, "Image", None, name)
    label = _column(dataset, features, "ClassLabel", dataset.label, name)
    scan = Scan(folders, classes=_class_names(splits, folders, label))
    for split, folder in folders.items():
        if image not in splits[folder].column_names or label not in splits[folder].column_names:
            raise UserError(f"{dataset.path}: split {folder!r} lacks the column {image!r} or {label!r}")
        _add_split(scan, split, splits[folder], image, label, dataset)
    return scan


def load_hub(name: str, dataset: Dataset) -> dict[str, Any]:
    """The splits of a data set, by the library: downloaded, or from its cache.

    Raises:
        UserError: it cannot be loaded.
    """
    import datasets

    address, _, revision = dataset.path.removeprefix(HUB_PREFIX).partition("@")
    source, _, config = address.partition(":")
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source, config or None, revision=revision or None)
    except Exception as error:  # the library and the many beneath it raise anything
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"{dataset.path}: cannot be loaded: {lines[0][:200]}; without a network, run `distillery download {name}` "
            "where there is one, and bring that machine's HF_HOME here"
        ) from None
    return dict(loaded)


def _validation_split(name: str, dataset: Dataset, splits: list[str]) -> str:
    alone = dataset.split is not None
    wanted = [dataset.val_folder] if dataset.val_folder else splits if alone and len(splits) == 1 else VALIDATION_NAMES
    present = [split for split in wanted if split in splits and (alone or split != "train")]
    if not present:
        beside = "" if alone else " beside 'train'"
        raise UserError(
            f"{dataset.path}: no split {' or '.join(map(repr, wanted))}{beside} (found {listed(splits)}); say "
            f"which to use with `val_folder` of {name!r} in datasets.yaml"
        )
    return present[0]


def _column(dataset: Dataset, features: dict[str, Any], kind: str, chosen: str | None, name: str) -> str:
    if chosen is not None:
        if chosen not in features:
            raise UserError(f"{dataset.path}: {name}.label: no column {chosen!r}; valid: {listed(sorted(features))}")
        return chosen
    columns = [column for column, feature in features.items() if type(feature).__name__ == kind]
    if kind == "ClassLabel" and not columns and "label" in features:
        return "label"
    if len(columns) != 1:
        hint = f"; say which to use with `label` of {name!r} in datasets.yaml" if kind == "ClassLabel" else ""
        raise UserError(
            f"{dataset.path}: needs one column of kind {kind}, found {listed(columns) or 'none'} among "
            f"{listed(sorted(features))}{hint}"
        )
    return columns[0]


def _class_names(splits: dict[str, Any], folders: dict[str, str], label: str) -> tuple[str, ...]:
    """The names of the classes, in the library's order; plain labels are sorted."""
    feature = splits[folders["val"]].features[label]
    if type(feature).__name__ == "ClassLabel":
        return tuple(feature.names)
    return tuple(map(str, sorted({value for folder in folders.values() for value in splits[folder][label]})))


def _add_split(scan: Scan, split: str, part: Any, image: str, label: str, dataset: Dataset) -> None:  # noqa: ANN401
    classes = scan.classes
    assert classes is not None
    numbers = {text: number for number, text in enumerate(classes)}
    named = type(part.features[label]).__name__ == "ClassLabel"
    labels = part[label][:]
    for row, (path, file) in enumerate(_image_files(part, image)):
        number = labels[row] if named else numbers[str(labels[row])]
        if number is None or not 0 <= number < len(classes):
            raise UserError(
                f"{dataset.path}: split {scan.folders[split]!r} row {row}: label {number!r}; valid: 0 to "
                f"{len(classes) - 1}"
            )
        scan.add(split, classes[number], f"{scan.folders[split]}/{row:08d}-{path}", file)


def _image_files(part: Any, image: str) -> Iterator[tuple[str, AnyFile]]:  # noqa: ANN401
    """Names and image files of a split in its order: bytes in the cache's Arrow files, or files that these point to."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for cached in part.cache_files:
        source = Path(cached["filename"])
        column = pa.ipc.open_stream(pa.memory_map(str(source))).read_all().column(image)
        sizes = pc.binary_length(pc.struct_field(column, "bytes")).to_pylist()
        paths = pc.struct_field(column, "path").to_pylist()
        for row, (size, path) in enumerate(zip(sizes, paths, strict=True)):
            name = Path(path or "image").name
            if size is None and path is not None:
                yield name, RawFile(path, Path(path).stat().st_size, Path("/"))
            else:
                yield name, ArrowFile(name, size or 0, source, image, row)
