"""The stored files of the terms on feature maps."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "golden-zoo"
spec = importlib.util.spec_from_file_location("golden_zoo_maps", Path(__file__).parent / "golden_zoo" / "maps.py")
maps = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maps)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda path: path.stem)
def test_equals_the_original(path):
    with np.load(path, allow_pickle=False) as arrays:
        meta = json.loads(str(arrays["meta"]))
        if meta["method"] not in maps.CHECKS:
            pytest.skip("another's")
        stored = {name: torch.from_numpy(np.asarray(arrays[name])) for name in arrays.files if name != "meta"}
    maps.CHECKS[meta["method"]](stored, meta)
