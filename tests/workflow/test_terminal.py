"""The experiment as the demo prints it."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
from terminal import print_experiment

EXPERIMENT = """
# digits

| Run              |        Top-1 (%) |   NLL | Selection   |
|:-----------------|-----------------:|------:|:------------|
| resnet20         |            98.33 | 0.050 | last epoch  |
| resnet8-mgd-amp  | **98.98 ± 0.43** | 0.036 | last epoch  |

A note.
"""


@pytest.mark.parametrize(
    ("width", "row", "left_out"),
    [
        (80, "resnet8-mgd-amp  98.98 ± 0.43  0.036  last epoch", None),
        (44, "resnet8-mgd-amp  98.98 ± 0.43  0.036", "In the file also: Selection."),
        (35, "resnet8-mgd-amp  98.98 ± 0.43", "In the file also: NLL, Selection."),
    ],
)
def test_a_table_loses_columns_and_never_letters(tmp_path, width, row, left_out):
    (tmp_path / "experiment.md").write_text(EXPERIMENT)
    text = io.StringIO()
    print_experiment(tmp_path / "experiment.md", Console(file=text, width=width))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert row in lines
    assert "A note." in lines
    assert [line for line in lines if line.startswith("In the file")] == ([] if left_out is None else [left_out])
