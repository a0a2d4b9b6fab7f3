"""A disk that is full, broken or read-only at each stage: one line, nothing half-written; the next start is whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]

PAGE = ["HERE/config/tiny.yaml"]
RESULTS = ["--results", "HERE/results"]
TRAIN = ["train", *PAGE, "taught", *RESULTS, "--workers", "0", "--threads", "1", "--checkpoint-seconds", "0"]
EVALUATE = ["evaluate", *PAGE, "small", *RESULTS, "--workers", "0", "--threads", "1"]
PROFILE = ["profile", *PAGE, "small", *RESULTS, "--threads", "1"]
TABULATE = ["tabulate", *PAGE, *RESULTS]
PREPARE = ["prepare", "tiny", "--config-dir", "HERE/config", *RESULTS, "--workers", "0"]
FULL, BROKEN, QUOTA = errno.ENOSPC, errno.EIO, errno.EDQUOT

SCENARIOS = {
    # name: command, words of the path, error, on reading, calls that succeed before
    "full disk, a checkpoint": (TRAIN, "checkpoint.pt", FULL, 0, 0),
    "full disk, a checkpoint later": (TRAIN, "checkpoint.pt", FULL, 0, 5),
    "broken disk, a checkpoint": (TRAIN, "checkpoint.pt", BROKEN, 0, 3),
    "quota, a checkpoint": (TRAIN, "checkpoint.pt", QUOTA, 0, 0),
    "full disk, weights": (TRAIN, "weights.safetensors", FULL, 0, 0),
    "broken disk, weights": (TRAIN, "weights.safetensors", BROKEN, 0, 1),
    "full disk, the record": (TRAIN, "run.json", FULL, 0, 0),
    "full disk, the history": (TRAIN, "history.csv", FULL, 0, 2),
    "full disk, TensorBoard": (TRAIN, "events.out", FULL, 0, 1),
    "full disk, the lock": (TRAIN, "/lock", FULL, 0, 0),
    "broken disk, the teacher": (TRAIN, "big/seed0/run.json", BROKEN, 1, 0),
    "broken disk, the configuration": (TRAIN, "config/tiny.yaml", BROKEN, 1, 0),
    "full disk, metrics": (EVALUATE, "metrics.json", FULL, 0, 0),
    "broken disk, metrics": (EVALUATE, "metrics.json", BROKEN, 0, 1),
    "full disk, the profile": (PROFILE, "profile.json", FULL, 0, 0),
    "full disk, a table": (TABULATE, "tables/.tiny.md", FULL, 0, 0),
    "full disk, a table's seal": (TABULATE, "_experiment.json", FULL, 0, 0),
    "broken disk, a measurement": (TABULATE, "metrics.json", BROKEN, 1, 0),
    "full disk, shards": (PREPARE, ".arrow", FULL, 0, 0),
    "full disk, shards later": (PREPARE, ".arrow", FULL, 0, 1),
    "full disk, the manifest": (PREPARE, "manifest.json", FULL, 0, 0),
    "broken disk, raw images": (PREPARE, "data/tiny/train/ape", BROKEN, 1, 0),
}


@pytest.fixture(scope="module")
def outcomes(prepared_tiny, tmp_path_factory):
    """What all scenarios came to, by name."""
    place = tmp_path_factory.mktemp("campaign")
    shim, source = place / "failing_io.so", place / "source"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "failing_io.c", "-ldl"], check=True)
    shutil.copytree(prepared_tiny, source)
    (source / "config/datasets.yaml").write_text(f"tiny: {{path: {place / 'tried' / 'data' / 'tiny'}}}\n")
    page = source / "config/tiny.yaml"
    page.write_text(
        page.read_text().partition("  tables:")[0].replace("[0, 1]", "[0]")
        + "  tables:\n    all: {title: All, rows: [big, small], columns: [top1, params]}\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, HERE / "campaign.py", source, place / "tried"],
        input=json.dumps(SCENARIOS),
        env=environment | {"LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disk_that_fails_ends_in_one_line_and_the_next_start_is_whole(outcomes, name):
    found = outcomes[name]
    lines = [line for line in found["said"].splitlines() if line.startswith("distillery: ")]
    assert found["code"] == 2, found["said"]
    assert len(lines) == 1, found["said"]
    assert "Traceback" not in found["said"]
    assert os.strerror(SCENARIOS[name][2]) in lines[0]
    assert found["changed"] == []
    assert found["litter"] == []
    assert found["code_again"] == 0, found["said_again"]
    assert found["as_if_nothing_had_been"]
