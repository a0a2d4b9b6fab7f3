import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("heads", HERE / "golden_zoo" / "heads.py")
heads = importlib.util.module_from_spec(spec)
spec.loader.exec_module(heads)
FILES = [path for path in sorted((HERE.parent / "golden-zoo").glob("*.npz")) if path.name.split("_")[0] in heads.CHECKS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file(path):
    with np.load(path, allow_pickle=False) as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
        meta = json.loads(str(arrays["meta"]))
    heads.CHECKS[meta["method"]](stored, meta)
    for key, value in stored.items():
        if not value.is_floating_point():
            continue
        changed = value + torch.randn(value.shape, dtype=value.dtype) * (1e-4 + value.abs().max())
        with pytest.raises(AssertionError):
            heads.CHECKS[meta["method"]](stored | {key: changed}, meta)
