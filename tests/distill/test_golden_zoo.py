"""Every file of a folder of the authors' inputs, outputs and gradients, checked by the method that its `meta` names.

The environment variable GOLDEN_ZOO names the folder, by default the repository's own (what its files hold:
tests/golden-zoo/README.md). How a method is checked stands in golden_zoo/: each file there has a dictionary CHECKS from
a method to a function of a file's arrays and its `meta`.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

OWN = Path(__file__).parents[1] / "golden-zoo"
FILES = sorted(Path(os.environ.get("GOLDEN_ZOO", OWN)).glob("*.npz"))

TWO_PHASES = "needs a first phase with another loss, and a run has one phase"
LEFT_OUT = {"fsp": TWO_PHASES, "ab": TWO_PHASES, "ft": TWO_PHASES}


def all_checks():
    found = {}
    for path in sorted(Path(__file__).with_name("golden_zoo").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"golden_zoo_{path.stem}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        checks = getattr(module, "CHECKS", {})
        assert not found.keys() & checks.keys(), f"{path.name}: checks {found.keys() & checks.keys()} once more"
        found |= checks
    return found


CHECKS = all_checks()


def load(path):
    """A file's arrays in float64 and int64, and its `meta`."""
    with np.load(path, allow_pickle=False) as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key != "meta"}
        meta = json.loads(str(arrays["meta"]))
    return {key: value.double() if value.is_floating_point() else value.long() for key, value in stored.items()}, meta


def check_file(path):
    stored, meta = load(path)
    if meta["method"] in LEFT_OUT:
        pytest.skip(f"{meta['method']}: {LEFT_OUT[meta['method']]}")
    assert meta["method"] in CHECKS, f"{path.name}: no check knows the method {meta['method']!r}"
    CHECKS[meta["method"]](stored, meta)


def test_there_are_files():
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_losses_parts_and_gradients_equal_the_authors(path):
    check_file(path)


def test_a_file_of_an_unknown_method_fails_and_is_named(tmp_path):
    np.savez(tmp_path / "new_B3.npz", meta=json.dumps({"method": "unheard"}), loss=np.zeros(()))
    with pytest.raises(AssertionError, match=r"new_B3\.npz: no check knows the method 'unheard'"):
        check_file(tmp_path / "new_B3.npz")


@pytest.mark.sweep
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_change_of_any_stored_array_is_seen(path):
    """So no loss, part or gradient is left out of a check."""
    stored, meta = load(path)
    check = CHECKS.get(meta["method"])
    if check is None:
        pytest.skip(f"{meta['method']} has no check")
    unseen = []
    for key, value in stored.items():
        if not value.is_floating_point():
            continue
        changed = 1.01 * value.flatten().flip(0).reshape(value.shape) + 1e-3 * max(value.abs().max().item(), 1)
        try:
            check(stored | {key: changed}, meta)
        except AssertionError:
            continue
        unseen.append(key)
    assert not unseen, f"{path.name}: the check of {meta['method']} does not look at {', '.join(unseen)}"
