"""Every file of the terms of logits."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.distill.golden_zoo.logits import CHECKS

FOLDER = Path(os.environ.get("GOLDEN_ZOO", Path(__file__).parents[1] / "golden-zoo"))


def load(path):
    with np.load(path, allow_pickle=False) as arrays:
        meta = json.loads(str(arrays["meta"]))
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files if key != "meta"}, meta


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.npz")), ids=lambda path: path.stem)
def test_a_term_equals_its_authors_code(path):
    stored, meta = load(path)
    if meta["method"] not in CHECKS:
        pytest.skip("another room's")
    CHECKS[meta["method"]](stored, meta)
