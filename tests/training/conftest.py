"""Fixtures of several of these modules."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distillery.data.prepare import prepare_dataset
from distillery.distill.teacher import Teacher
from distillery.experiment.schema.dataset import Dataset


@pytest.fixture
def shown(monkeypatch):
    """The sizes of what teachers are shown."""
    sizes, original = set(), Teacher.__call__

    def call(self, images):
        sizes.add(tuple(images.shape[1:]))
        return original(self, images)

    monkeypatch.setattr(Teacher, "__call__", call)
    return sizes


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
