"""Every file that is not what was written is named."""

import pytest
import yaml

from distillery.cli import main
from distillery.evaluation.evaluate import evaluate_run
from distillery.evaluation.profile import profile_run
from distillery.experiment import load_experiment
from distillery.reporting.tables import tabulate_experiment
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


@pytest.mark.slow
def test_a_flipped_byte_of_any_file_is_named(place, capsys):
    assert verify(place, capsys, "--rerun")[:2] == (
        0,
        "7 files looked at, 0 of them damaged, replaced, edited or out of date",
    )
    run, data = place.results / "tiny" / "small" / "seed0", place.results / "datasets" / "tiny"
    files = [run / name for name in ("weights.safetensors", "history.csv", "run.json", "metrics.json")]
    for path in [*files, *data.iterdir()]:
        whole = path.read_bytes()
        # The second is in a text, of JSON files, that nothing else looks at.
        for position in (0, whole.find(b": ") + 4, len(whole) // 3, len(whole) - 1):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            code, _, lines = verify(place, capsys)
            assert code == 2
            assert [line for line in lines if str(path) in line]
        path.write_bytes(whole)
    assert verify(place, capsys)[0] == 0


def test_where_there_is_nothing_to_look_at_that_is_said(place, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place.experiment), "--results", str(tmp_path / "nowhere")])
    assert ended.value.code == 2
    assert f"{tmp_path / 'nowhere'}: has no results of {place.experiment} that" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run.json", "metrics.json", "weights.safetensors", "history.csv"])
def test_a_folder_in_the_place_of_a_file_is_named(place, capsys, name):
    path = place.results / "tiny" / "small" / "seed0" / name
    path.unlink()
    path.mkdir()
    code, _, lines = verify(place, capsys)
    assert code == 2
    assert [line for line in lines if f"{path}: cannot be read: Is a directory" in line]


def test_a_rerun_finds_metrics_that_were_never_measured(place, capsys):
    path = place.results / "tiny" / "small" / "seed0" / "metrics.json"
    write_sealed(path, read_json(path, "it") | {"top1": 100.5})
    assert verify(place, capsys)[0] == 0
    code, _, (line,) = verify(place, capsys, "--rerun")
    assert code == 2
    assert "metrics.json: top1: 100.5, but measured again it is " in line


@pytest.fixture
def tabulated(place):
    """Tables of one run, with its profile: one of scores on its page, one of times alone."""
    page = yaml.safe_load(place.experiment.read_text())
    page["tiny"]["runs"]["small"]["seeds"] = [0]
    page["tiny"]["tables"] = {
        "scores": {"title": "Scores", "rows": ["small"], "columns": ["top1", "params"]},
        "times": {"title": "Times", "rows": ["small"], "columns": ["latency"]},
    }
    place.experiment.write_text(yaml.safe_dump(page, sort_keys=False))
    experiment = load_experiment(place.experiment)
    profile_run(experiment, "small", place.results)
    tabulate_experiment(experiment, place.results, experiment.published)
    return place


@pytest.mark.slow
def test_a_flipped_byte_of_a_table_or_profile_is_named(tabulated, capsys):
    place, tables = tabulated, tabulated.results / "tables"
    code, said, lines = verify(place, capsys)
    assert (code, lines) == (0, [])
    assert said.startswith("23 files looked at")
    files = [path for path in tables.rglob("*") if path.is_file()]
    assert len(files) == 15
    for path in [*files, place.results / "tiny" / "small" / "profile.json"]:
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, whole.find(b'"seal"') + 1, len(whole) - 1):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            code, _, lines = verify(place, capsys)
            assert code == 2
            assert [line for line in lines if line.startswith(f"distillery: {path}: ")]
        path.write_bytes(whole)
    (tables / "tiny.csv").unlink()
    assert "tiny.csv: cannot be read: No such file or directory" in verify(place, capsys)[2][0]


@pytest.mark.slow
def test_a_table_older_than_what_it_was_made_from_is_named(tabulated, capsys):
    metrics = tabulated.results / "tiny" / "small" / "seed0" / "metrics.json"
    write_sealed(metrics, read_json(metrics, "it") | {"top1": 12.5})
    code, _, lines = verify(tabulated, capsys)
    assert code == 2
    assert len(lines) == 8  # scores alone and the page, in four formats; not the times
    line = f"tiny.md: older than {metrics}, which it was made from; make it again with: distillery tabulate "
    assert any(line in each for each in lines)


@pytest.mark.slow
def test_a_renamed_table_takes_its_seal_with_it(tabulated, capsys):
    tabulated.edit("times:", "speed:")
    experiment = load_experiment(tabulated.experiment)
    tabulate_experiment(experiment, tabulated.results, experiment.published)
    assert sorted(path.stem for path in (tabulated.results / "tables" / "tiny").glob("*.json")) == [
        "_experiment",
        "scores",
        "speed",
    ]
    assert verify(tabulated, capsys)[0] == 0
