"""Every file that is not what was written is named."""

import pytest

from distillery.cli import main
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.results import read_json, write_sealed


@pytest.fixture
def place(workplace):
    workplace.make()
    evaluate_run(load_experiment(workplace.experiment), "small", 0, workplace.results)
    return workplace


def verify(place, capsys, *more):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place.experiment), "--results", str(place.results), *more])
    said = capsys.readouterr()
    return ended.value.code, said.out.splitlines()[-1], said.err.splitlines()


def test_a_flipped_byte_of_any_file_is_named(place, capsys):
    assert verify(place, capsys, "--rerun")[:2] == (0, "7 files looked at, 0 of them damaged, replaced or edited")
    run, data = place.results / "tiny" / "small" / "seed0", place.results / "datasets" / "tiny"
    files = [run / name for name in ("weights.safetensors", "history.csv", "run.json", "metrics.json")]
    for path in [*files, *data.glob("*.arrow")]:
        whole = path.read_bytes()
        for position in (0, len(whole) // 3, len(whole) - 1):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            code, _, lines = verify(place, capsys)
            assert code == 2
            assert [line for line in lines if str(path) in line]
        path.write_bytes(whole)
    assert verify(place, capsys)[0] == 0


def test_a_rerun_finds_metrics_that_were_never_measured(place, capsys):
    path = place.results / "tiny" / "small" / "seed0" / "metrics.json"
    write_sealed(path, read_json(path, "it") | {"top1": 100.5})
    assert verify(place, capsys)[0] == 0
    code, _, (line,) = verify(place, capsys, "--rerun")
    assert code == 2
    assert "metrics.json: top1: 100.5, but measured again it is " in line
