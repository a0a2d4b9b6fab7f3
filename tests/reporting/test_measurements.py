"""Measurements are read whole and fresh, or the command that makes them is named."""

import json
import re

import pytest

from distillery.errors import UserError
from distillery.experiment.schema.columns import COLUMNS, Summary
from distillery.paths import profile_path, run_folder
from distillery.reporting.measurements import Measured, needed_files, read_measurements
from distillery.results import record_sha256


def read(desk):
    return read_measurements(desk.experiment, desk.results)


def test_values_come_from_every_seed(desk):
    desk.write_results()
    small = read(desk)["small"]
    assert COLUMNS["top1"].value(small) == Summary(91.0, 1.0, 3)
    assert COLUMNS["error1"].value(small) == Summary(9.0, 1.0, 3)
    assert COLUMNS["error5"].value(small).mean == pytest.approx(1.0)
    assert COLUMNS["params"].value(small) == Summary(77850, None, 1)
    assert COLUMNS["latency"].value(small) == Summary(1.25, None, 1)
    assert (small.selection, small.images) == ("last", 360)


def test_a_run_without_teacher_has_no_agreement(desk):
    desk.write_results()
    runs = read(desk)
    assert COLUMNS["agreement"].value(runs["small"]) is None
    assert COLUMNS["agreement"].value(runs["small-kd"]) == Summary(95.0, 0.0, 3)


def test_what_no_table_shows_is_not_asked_for(desk):
    desk.write_experiment(desk.text.partition("    speed:")[0].replace("params, size", "ece"))
    desk.write_results()
    for run in ("big", "small", "small-kd"):
        profile_path(desk.results, "toy", run).unlink()
    assert set(read(desk)) == {"big", "small", "small-kd"}


def test_what_is_not_known_of_a_run_is_none():
    assert COLUMNS["top1"].value(Measured()) is None
    assert COLUMNS["params"].value(Measured()) is None


def fault(desk):
    with pytest.raises(UserError) as caught:
        read(desk)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_named_with_the_command_that_makes_it(desk):
    desk.write_results()
    path = run_folder(desk.results, "toy", "small", 2) / "metrics.json"
    path.unlink()
    command = f"distillery evaluate {desk.experiment.path} small --seed 2 --results {desk.results}"
    assert fault(desk) == f"{path}: missing; first make it with: {command}"
    desk.write_metrics("small", 2)
    profile_path(desk.results, "toy", "big").unlink()
    assert fault(desk).endswith(f"distillery profile {desk.experiment.path} big --results {desk.results}")


def test_the_usual_results_folder_need_not_be_named(desk, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(desk.folder)
    with pytest.raises(UserError, match=re.escape("config/toy.yaml big --seed 0") + "$"):
        read_measurements(desk.experiment, Path("results"))


def test_what_was_measured_before_the_run_changed_is_refused(desk):
    desk.write_results()
    desk.write_experiment(desk.text.replace("temperature: 4", "temperature: 2"))
    line = fault(desk)
    assert line.startswith(f"{run_folder(desk.results, 'toy', 'small-kd', 0) / 'metrics.json'}: measured another")
    assert desk.experiment.spec("small-kd", 0).digest in line
    desk.write_experiment(desk.text)
    desk.write_profile("big", digest="0" * 16)
    assert fault(desk).startswith(f"{profile_path(desk.results, 'toy', 'big')}: measured another configuration")


def test_what_was_measured_on_other_images_is_refused_and_is_a_gap_in_a_partial_table(desk):
    desk.write_results()
    for images in ("0", "1"):  # the first is what the manifest says
        record = {"manifest_digest": images, "weights_sha256": "0" * 64}
        (run_folder(desk.results, "toy", "small", 1) / "run.json").write_text(json.dumps(record))
        desk.write_metrics("small", 1, record_sha256=record_sha256(record))
        if images == "0":
            read(desk)
    assert "metrics.json: measured on other images than toy now holds (their digest is 1, now it is 0)" in fault(desk)
    assert read_measurements(desk.experiment, desk.results, partial=True)["small"].seeds == (0, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"top1":', "cannot be read: not valid JSON; make it again with: distillery evaluate"),
        ("[1]", "not a mapping of names to values; make it again with"),
        ("\udcff", "cannot be read: it is not UTF-8 text"),
    ],
)
def test_a_damaged_file_is_named(desk, text, expected):
    desk.write_results()
    path = run_folder(desk.results, "toy", "small", 0) / "metrics.json"
    path.write_text(text, errors="surrogateescape")
    line = fault(desk)
    assert line.startswith(f"{path}: ")
    assert expected in line


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"top1": 101.0}, "top1: 101.0 is not valid; expected a number from 0 to 100"),
        ({"nll": None}, "nll: None is not valid; expected a number not below 0"),
        ({"images": 0}, "images: 0 is not valid"),
        ({"selection": "lucky"}, "selection: 'lucky' is not valid; valid: best, imported, last"),
    ],
)
def test_an_impossible_value_is_named(desk, values, expected):
    desk.write_results()
    desk.write_metrics("small", 0, **values)
    assert expected in fault(desk)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_a_number_that_nothing_writes_is_an_edit(desk, number):
    desk.write_results()
    path = run_folder(desk.results, "toy", "small", 0) / "metrics.json"
    path.write_text(re.sub(r'"top1": [0-9.]+', f'"top1": {number}', path.read_text()))
    assert "its seal does not fit" in fault(desk)


def test_a_key_that_a_file_lacks_is_missed_only_where_a_table_shows_it(desk):
    desk.write_results()
    path = run_folder(desk.results, "toy", "small", 0) / "metrics.json"
    path.write_text(path.read_text().replace('"ece"', '"other"'))
    read(desk)
    desk.write_experiment(desk.text.replace("params, size", "ece"))
    assert fault(desk).startswith(f"{path}: lacks 'ece'; make it again with: distillery evaluate ")


def test_probes_are_needed_and_read_where_a_table_shows_them(desk):
    desk.write_results()
    desk.write_experiment(desk.text.replace("nll", "knn"))
    assert needed_files(desk.experiment, ["methods"])["small"] == {
        "run.json",
        "metrics.json",
        "probes.json",
        "profile.json",
    }
    path = run_folder(desk.results, "toy", "big", 0) / "probes.json"
    assert fault(desk).startswith(f"{path}: missing; first make it with: distillery probe ")
    for run in ("big", "small", "small-kd"):
        for seed in desk.experiment.seeds(run):
            content = {"digest": desk.experiment.spec(run, seed).digest, "images": 360, "selection": "last"}
            folder = run_folder(desk.results, "toy", run, seed)
            (folder / "probes.json").write_text(json.dumps(content | {"knn": 80.0 + seed}))
    assert read(desk)["small"].values("probes.json", "knn") == [80.0 + seed for seed in desk.experiment.seeds("small")]


def test_the_files_that_tables_need_follow_from_their_columns(desk):
    files = needed_files(desk.experiment, ["methods"])
    assert files == {run: {"run.json", "metrics.json", "profile.json"} for run in ("big", "small", "small-kd")}
    assert needed_files(desk.experiment, ["speed"])["small"] == {"run.json", "profile.json"}
    alone = desk.text.replace("rows: [big, small, small-kd]", "rows: [small-kd]")
    desk.write_experiment(alone)
    assert set(needed_files(desk.experiment, ["methods"])) == {"small-kd"}
    desk.write_experiment(alone.replace("nll", "size_ratio"))
    assert needed_files(desk.experiment, ["methods"])["big"] == {"run.json", "profile.json"}
