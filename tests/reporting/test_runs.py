"""`distillery logs` and `distillery show`: one run, from its files."""

import json
import os
import time
from pathlib import Path

import pytest

from distillery.cli import main
from distillery.errors import UserError
from distillery.paths import log_folder, run_folder
from distillery.reporting.runs import find_run


def write_log(desk, text, seed=1, name="train.log", age=60.0):
    path = log_folder(desk.results, "toy", "small", seed) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture
def say(desk, monkeypatch, capsys):
    """Run a command in the desk's folder; its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.chdir(desk.folder)
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


@pytest.mark.parametrize(
    ("target", "seeds"),
    [("toy/small", [0, 1, 2]), ("toy/small/seed1", [1]), ("results/toy/small/seed2/run.json", [2]), ("toy/big", [0])],
)
def test_a_run_is_named_like_its_results(desk, monkeypatch, target, seeds):
    monkeypatch.chdir(desk.folder)
    experiment, run, found = find_run(target, Path("config"), Path("results"))
    assert (experiment.name, run, found) == ("toy", target.removeprefix("results/").split("/")[1], seeds)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("toy", "toy: names no run; expected EXPERIMENT/RUN"),
        ("toy/smal", "no run 'smal'; did you mean 'small'"),
        ("toy/small/seed9", "no seed 9; valid: 0, 1, 2"),
        ("tou/small", "no experiment 'tou', did you mean 'toy'"),
        ("toy/small/seedX", "no seed 'seedX'"),
    ],
)
@pytest.mark.parametrize("command", ["logs", "show"])
def test_a_mistyped_run_gets_one_line(say, command, target, said):
    code, _, error = say(command, target)
    assert code == 2
    assert said in error
    assert len(error.splitlines()) == 1


def test_a_failed_jobs_log_is_shown_with_its_reason_first(desk, say):
    failed = write_log(desk, "epoch 1\n[rank0]: distillery: the loss is NaN\n" + "torchrun says much\n" * 20, age=90)
    newer = write_log(desk, "fine\n", seed=2)
    _, out, _ = say("logs", "toy/small", "--lines", "2")
    assert out.splitlines() == [
        f"{failed.relative_to(desk.folder)} (1 minute ago): the loss is NaN",
        f"{newer.relative_to(desk.folder)} (1 minute ago)",
        "",
        f"{failed.relative_to(desk.folder)} ends with:",
        "torchrun says much",
        "torchrun says much",
    ]


def test_without_a_failure_it_is_the_newest_log(desk, say):
    write_log(desk, "old\n", age=9e5)
    write_log(desk, "new\x1b[2J\n", name="evaluate.log")
    _, out, _ = say("logs", "toy/small/seed1")
    assert "train.log (10 days ago)" in out
    assert out.endswith("evaluate.log ends with:\nnew [2J\n")
    assert [log["lines"] for log in json.loads(say("logs", "toy/small", "--json")[1])["logs"]] == [["old"], ["new [2J"]]


def test_a_run_without_logs_says_so(say):
    code, _, error = say("logs", "toy/big")
    assert code == 2
    assert error.startswith("distillery: toy/big: no job of the workflow has logged anything")


def test_show_has_state_digest_teacher_results_provenance_and_spec(desk, say):
    spec, folder = desk.experiment.spec("small-kd", 1), run_folder(desk.results, "toy", "small-kd", 1)
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"x")
    origin = {"git": {"commit": "a" * 40, "dirty": True}, "packages": {"torch": "2.9"}, "python": "CPython 3.11"}
    session = {"seconds": 12.5, "from_epoch": 0, "processes": 2, "device": "NVIDIA A40", "provenance": origin}
    record = {"digest": spec.digest, "spec": spec.ledger, "sessions": [session], "alarms": [{"line": "kd is constant"}]}
    (folder / "run.json").write_text(json.dumps(record | {"manifest_digest": "0"}))
    desk.write_metrics("small-kd", 1)
    _, out, _ = say("show", "toy/small-kd/seed1")
    assert out.splitlines()[:4] == [
        "toy/small-kd, seed 1 of 0, 1, 2",
        "state    done, top-1 90.00",
        f"digest   {spec.digest}",
        "results  results/toy/small-kd/seed1",
    ]
    assert f"teacher  big (digest {spec.teacher.digest}), results/toy/big/seed0" in out
    assert "session  1 of 1: 12.5 s from epoch 0, 2 x NVIDIA A40" in out
    assert "commit aaaaaaaaaa with changes, torch 2.9, CPython 3.11" in out
    assert "alarm    kd is constant" in out
    assert "    temperature: 4.0" in out or "temperature: 4.0" in out
    facts = json.loads(say("show", "toy/small-kd/seed1", "--json")[1])
    assert (facts["digest"], facts["spec"], facts["metrics"]["top1"]) == (spec.digest, spec.ledger, 90.0)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"sessions": [null], "alarms": [7], "provenance": 3, "epoch": "x"}']
)
def test_show_survives_what_does_not_exist_yet_and_damaged_records(desk, say, content):
    assert "state    not begun" in say("show", "toy/small")[1]
    folder = run_folder(desk.results, "toy", "small", 0)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(content)
    code, out, _ = say("show", "toy/small")
    assert code == 0
    assert "state    damaged" in out


def test_a_target_without_an_experiment_is_refused(desk, monkeypatch):
    monkeypatch.chdir(desk.folder)
    with pytest.raises(UserError, match="expected a file of results"):
        find_run("results", desk.folder / "config", desk.results)
