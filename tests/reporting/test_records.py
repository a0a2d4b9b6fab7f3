"""Records of an experiment kept by themselves: what they hold, that all follows from them, and that damage is named."""

import getpass
import json
import shutil
import socket
from pathlib import Path

import pytest

from distillery.cli import main
from distillery.errors import UserError
from distillery.evaluation.evaluate import evaluate_run
from distillery.experiment import load_experiment
from distillery.reporting.figures import plot_experiment
from distillery.reporting.records import keep_records, report_records
from distillery.reporting.status import read_status
from distillery.reporting.tables import tabulate_experiment
from distillery.results import read_json, write_sealed

OLD = "columns: [top1, nll, ece, agreement, params, macs, size]"
RUNS = [("big", 0), ("small", 0), ("small", 1), ("taught", 0), ("taught", 1)]


@pytest.fixture(scope="module")
def made(prepared_tiny, tmp_path_factory):
    """A project whose runs are finished and measured, and its records; nothing here changes it."""
    import torch

    from distillery.training.job import Job, Machine
    from distillery.training.run import make_run

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("records") / "work"
    shutil.copytree(prepared_tiny, folder)
    page = folder / "config" / "tiny.yaml"
    page.write_text(page.read_text().replace(OLD, "columns: [top1, gain, nll], baseline: small"))
    experiment = load_experiment(page)
    for run, seed in RUNS:
        make_run(Job(experiment, run, seed, folder / "results", Machine(workers=0, threads=1)))
        evaluate_run(experiment, run, seed, folder / "results")
    assert keep_records(experiment, folder / "results", folder / "kept") == []
    report_records(experiment, folder / "kept")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A private copy of that project: page, results and records."""
    shutil.copytree(made, tmp_path / "work")
    return tmp_path / "work"


def page_of(place):
    return load_experiment(place / "config" / "tiny.yaml")


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def verify(place, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(place / "config" / "tiny.yaml"), "--results", str(place / "kept")])
    said = capsys.readouterr()
    return ended.value.code, said.out.splitlines(), said.err.splitlines()


@pytest.mark.slow
def test_records_are_small_and_name_no_machine(made):
    kept = files_of(made / "kept")
    names = {Path(name).name for name in kept if name.startswith("tiny/")}
    assert names == {"run.json", "history.csv", "metrics.json", "records.json"}
    assert {name for name in kept if name.startswith("datasets/")} == {"datasets/tiny/manifest.json"}
    assert all(content == (made / "results" / name).read_bytes() for name, content in kept.items() if name in names)
    assert sum(map(len, kept.values())) < 300_000
    said = b"".join(kept.values()).decode()
    for word in (str(made), str(Path.home()), f'"{socket.gethostname()}"', f'"{getpass.getuser()}"'):
        assert word not in said


@pytest.mark.slow
def test_tables_and_figures_are_those_of_the_results(made, tmp_path):
    experiment = page_of(made)
    shutil.copytree(made / "results", tmp_path / "results")
    tabulate_experiment(experiment, tmp_path / "results", experiment.published)
    plot_experiment(experiment, tmp_path / "results", experiment.published)
    kept, whole = files_of(made / "kept"), files_of(tmp_path / "results")
    shared = [name for name in kept if name.startswith(("tables/", "figures/"))]
    assert len(shared) > 8
    assert "figures/tiny/methods_gains.svg" in shared
    assert all(kept[name] == whole[name] for name in shared)


@pytest.mark.slow
def test_all_that_follows_from_records_has_the_same_bytes_again(place):
    before = files_of(place / "kept")
    for name in ("tables", "figures", "cards"):
        shutil.rmtree(place / "kept" / name)
    report_records(page_of(place), place / "kept")
    assert files_of(place / "kept") == before


def test_verify_looks_at_records_without_weights_and_images(place, capsys):
    code, said, faults = verify(place, capsys)
    assert (code, faults) == (0, [])
    assert said[-1] == "records of 5 networks, 0 of them with their weights"
    weights = place / "kept" / "tiny" / "small" / "seed1" / "weights.safetensors"
    shutil.copy(place / "results" / "tiny" / "small" / "seed1" / weights.name, weights)
    assert verify(place, capsys)[1][-1] == "records of 5 networks, 1 of them with their weights"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, _, faults = verify(place, capsys)
    assert code == 2
    assert any(f"{weights}: damaged or replaced" in line for line in faults)


def test_runs_are_shown_as_done(made):
    lines = read_status([page_of(made)], made / "kept")
    assert {(line.run, line.seed): line.state for line in lines} == dict.fromkeys(RUNS, "done")


@pytest.mark.slow
def test_a_flipped_byte_of_any_record_is_named(place, capsys):
    kept = place / "kept"
    for path in [*(kept / "tiny").rglob("*.*"), kept / "datasets" / "tiny" / "manifest.json"]:
        whole = path.read_bytes()
        for position in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
            code, _, faults = verify(place, capsys)
            assert code == 2
            assert [line for line in faults if str(path) in line]
        path.write_bytes(whole)
    assert verify(place, capsys)[0] == 0


def test_a_seed_that_was_taken_away_is_named(place, capsys):
    shutil.rmtree(place / "kept" / "tiny" / "small" / "seed1")
    code, _, faults = verify(place, capsys)
    assert code == 2
    assert any("small/seed1/metrics.json: cannot be read: No such file or directory" in line for line in faults)


def test_what_was_not_made_or_measured_or_is_stale_is_left_out_and_not_run(place):
    results = place / "results" / "tiny"
    shutil.rmtree(results / "small" / "seed1")
    (results / "taught" / "seed1" / "metrics.json").unlink()
    page = place / "config" / "tiny.yaml"
    page.write_text(
        page.read_text().replace(
            "{model: cifar_resnet14, recipe: tiny,", "{model: cifar_resnet14, recipe: tiny, epochs: 3,"
        )
    )
    lines = keep_records(page_of(place), place / "results", place / "kept")
    assert [line.partition(" (")[0] for line in lines] == [
        "big, seed 0: of another configuration",
        "small, seed 1: not made",
        "taught, seed 0: of another configuration",
        "taught, seed 1: of another configuration",
    ]
    report_records(page_of(place), place / "kept")
    table = (place / "kept" / "tables" / "tiny.md").read_text()
    assert "A partial experiment: 0 of 3 runs are complete." in table
    assert "## small" in (place / "kept" / "cards" / "tiny.md").read_text()
    assert "## taught" not in (place / "kept" / "cards" / "tiny.md").read_text()


@pytest.mark.parametrize("name", ["run.json", "history.csv", "metrics.json", "weights.safetensors"])
def test_a_damaged_run_is_not_kept_and_earlier_records_stay(place, name):
    before = files_of(place / "kept")
    path = place / "results" / "tiny" / "small" / "seed0" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(UserError, match=name):
        keep_records(page_of(place), place / "results", place / "kept")
    assert files_of(place / "kept") == before


def test_where_there_is_nothing_to_keep_that_is_said(place):
    shutil.rmtree(place / "results" / "tiny")
    with pytest.raises(UserError, match="has no finished and measured run of"):
        keep_records(page_of(place), place / "results", place / "kept")


def test_results_are_not_kept_in_their_own_place(place):
    with pytest.raises(UserError, match="is where the results lie"):
        keep_records(page_of(place), place / "results", place / "results")
    assert (place / "results" / "tiny" / "small" / "seed0" / "weights.safetensors").is_file()


def test_a_card_says_how_a_run_was_made_and_what_came_of_it(made):
    text = (made / "kept" / "cards" / "tiny.md").read_text()
    card = text[text.index("## taught") :]
    record = json.loads((made / "kept" / "tiny" / "taught" / "seed1" / "run.json").read_text())
    metrics = json.loads((made / "kept" / "tiny" / "taught" / "seed1" / "metrics.json").read_text())
    for part in (
        "`cifar_resnet8`, trained; teacher [big](#big).",
        f"| 1 | {metrics['top1']:.2f} |",
        f"`{record['digest']}`",
        f"`{record['weights_sha256'][:16]}`",
        "[history.csv](../tiny/taught/seed1/history.csv)",
        "| Top-1 (%) after epoch | 1 | 2 |",
        "torch ",
        "kd: {weight: 0.5, temperature: 2.0}",
    ):
        assert part in card
    linked = made / "kept" / "cards" / "../tiny/taught/seed1/history.csv"
    assert linked.is_file()


def test_a_card_does_not_take_a_record_that_was_edited(place):
    path = place / "kept" / "tiny" / "small" / "seed0" / "run.json"
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 9'))
    with pytest.raises(UserError, match="seal"):
        report_records(page_of(place), place / "kept")
    write_sealed(path, read_json(place / "results" / "tiny" / "small" / "seed0" / "run.json", "it") | {"epoch": 9})
    with pytest.raises(UserError, match="measured another network"):
        report_records(page_of(place), place / "kept")
