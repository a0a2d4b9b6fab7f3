"""What a run recorded, and was changed into another kind since, ends in one line."""

import json
import os
import signal
from pathlib import Path

import pytest

from distillery.cluster.run_lock import RunLock
from distillery.errors import UserError
from distillery.evaluation.record import read_record
from distillery.experiment.ledger import file_sha256
from distillery.models.pretrained.classes import weights_classes
from distillery.reporting.history import read_history
from distillery.reporting.published import load_published
from distillery.results import file_hash
from distillery.training.checkpoint import CheckpointFolder

RECORD = {
    "digest": "0" * 16, "spec": {}, "manifest_digest": "1" * 64, "classes": 3, "selection": "last", "epoch": 1,
    "preprocess": {"size": 8, "resize": None, "interpolation": "bilinear", "normalize": "none", "rule": "torchvision"},
    "statistics": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("preprocess", 3, "preprocess: 3 is not valid"),
        ("preprocess", None, "preprocess: null is not valid"),
        ("preprocess", {"size": "8"}, "preprocess.size: '8' is not valid; expected a whole number"),
        ("preprocess", {"size": 8, "crop": 1}, "preprocess.crop: unknown key"),
        ("statistics", [0, 1], "statistics: "),
        ("statistics", {"mean": [0, 0], "std": [1, 1, 1]}, "statistics.mean.2: missing"),
        ("classes", "3", "classes: '3' is not valid"),
        ("classes", True, "classes: true is not valid"),
        ("classes", -1, "classes: -1 is not valid"),
        ("manifest_digest", 5, "manifest_digest: 5 is not valid; expected text"),
        ("spec", "x", "spec: 'x' is not valid; expected a mapping"),
        ("digest", None, "digest: null is not valid"),
    ],
)
def test_a_record_of_another_kind_is_refused_with_its_key(tmp_path, key, value, message):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(RECORD))
    assert read_record(path) == RECORD
    path.write_text(json.dumps(RECORD | {key: value}))
    with pytest.raises(UserError) as caught:
        read_record(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    path.write_text(json.dumps({name: kept for name, kept in RECORD.items() if name != key}))
    with pytest.raises(UserError, match=f"lacks '{key}'"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"digest": ' + "[" * 100_000, "\x00", "NaN"])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"run\.json: "):
        read_record(path)


@pytest.mark.parametrize("text", ["", "epoch\n", "\x00", "epoch,lr,train_loss\n1\n", '"' + "x" * 200_000])
def test_a_history_that_is_none_is_refused(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"history\.csv: "):
        read_history(Path(path), "distillery train")


READERS = {
    "record": read_record,
    "history": lambda path: read_history(path, "distillery train"),
    "checksum": file_hash,
    "lock": lambda path: RunLock(path).acquire(),
    "checkpoint": lambda path: CheckpointFolder(path.parent).load(),
    "published numbers": load_published,
    "classes": lambda path: weights_classes(str(path), {}),
    "bytes that decide a run": file_sha256,
}


@pytest.mark.parametrize("kind", ["a pipe", "a device without end"])
@pytest.mark.parametrize("reader", READERS)
def test_nothing_waits_for_a_pipe_or_reads_without_end(tmp_path, kind, reader):
    path = tmp_path / "checkpoint.pt"
    path.symlink_to("/dev/zero") if kind != "a pipe" else os.mkfifo(path)
    previous = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still reading"))
    signal.setitimer(signal.ITIMER_REAL, 5)
    try:
        found = READERS[reader](path)
    except (UserError, OSError) as error:
        found = str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert found is None or "it is not a regular file" in found
