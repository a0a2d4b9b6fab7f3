"""The command line: what it prints, how it ends, and how light it is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from distillery import __version__
from distillery.cli import main

ROOT = Path(__file__).parents[1]
# What takes seconds to import and is of no use to a small network.
HEAVY = {
    "botocore", "datasets", "matplotlib", "pandas", "sklearn", "sympy", "timm", "torch._dynamo", "torchmetrics",
    "torchvision",
}  # fmt: skip


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return ended.value.code, output.out, output.err


def test_check_lists_the_runs_of_an_experiment(capsys):
    code, out, _ = run(capsys, "check", ROOT / "config/digits.yaml")
    assert code == 0
    assert [line.split("|")[1].strip() for line in out.splitlines()[2:] if "|" in line].count("resnet8-kd") == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nowhere.yaml"), "nowhere.yaml: cannot be read: No such file or directory"),
        (("check", "config/tinny.yaml"), "No such file or directory; did you mean 'config/tiny.yaml'?"),
        (("check", "tiny"), "tiny: cannot be read: No such file or directory; did you mean 'config/tiny.yaml'?"),
        (("status", "config/tinny.yaml"), "did you mean 'config/tiny.yaml'?"),
        (("status", "--watch"), "--watch needs a terminal"),
        (("train", "config/tiny.yaml", "smal"), "no run 'smal'; did you mean 'small'"),
        (("train", "config/tiny.yaml", "small", "--seed", "7"), "no seed 7; valid: 0, 1"),
        (
            ("train", "config/tiny.yaml", "small", "--expect-digest", "beef"),
            "small was changed after this job was planned",
        ),
        (("prepare", "tiny2"), "no data set 'tiny2'; did you mean 'tiny'"),
        (("data", "tiny2"), "missing; first make it with: distillery prepare tiny2"),
        (("data", "tiny", "--recipe", "tinny"), "--recipe: no file config/recipes/tinny.yaml; did you mean 'tiny'?"),
        (("evaluate", "config/tiny.yaml", "small"), "missing"),
        (("profile", "config/tiny.yaml", "small"), "missing"),
        (("tabulate", "config/tiny.yaml"), "missing"),
        (("plot", "config/tiny.yaml"), "missing"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(workplace, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(workplace.folder)
    code, _, err = run(capsys, *arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("distillery: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("trian",), "distillery: No such command 'trian'. Did you mean 'train'?; see distillery --help"),
        (("train", "config/tiny.yaml"), "distillery: Missing argument 'run'; see distillery train --help"),
        (("check", "a", "--sed", "4"), "distillery: No such option: --sed; see distillery check --help"),
        (
            ("train", "a", "b", "--sed", "4"),
            "distillery: No such option: --sed (Possible options: --seed, --speed); see distillery train --help",
        ),
        (
            ("train", "a", "b", "--workers", "-1"),
            "distillery: Invalid value for '--workers': Input should be greater than or equal to 0; "
            "see distillery train --help",
        ),
    ],
)
def test_misuse_gets_one_line_and_exit_code_2(capsys, arguments, line):
    assert run(capsys, *arguments) == (2, "", f"{line}\n")


def test_version_and_help_end_well(capsys):
    assert run(capsys, "--version") == (0, f"distillery {__version__}\n", "")
    code, out, _ = run(capsys)
    assert code == 0
    assert "Commands:" in out
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    assert "--checkpoint-seconds" in out


def test_ctrl_c_ends_with_130(monkeypatch, capsys):
    def interrupt(path, rehearsal):
        raise KeyboardInterrupt

    monkeypatch.setattr("distillery.cli.load_experiment", interrupt)
    assert run(capsys, "plot", "config/tiny.yaml") == (130, "", "")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("model: cifar_resnet15", "model: no model 'cifar_resnet15'; did you mean 'cifar_resnet"),
        (
            "model: cifar_resnet14, optimizer: {name: lam, lr: 0.1}",
            "optimizer.name: timm has no 'lam'; did you mean 'lamb'",
        ),
        (
            "model: cifar_resnet14, model_args: {widht: 4}",
            "model_args.widht: cifar_resnet14 has no argument 'widht'; did you mean 'width'",
        ),
    ],
)
def test_check_finds_what_is_misspelt(workplace, capsys, written, message):
    workplace.edit("model: cifar_resnet14", written)
    code, _, err = run(capsys, "check", workplace.experiment)
    assert code == 2
    assert f"tiny.runs.big.{message}" in err


def test_a_missing_data_folder_says_what_to_put_where(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    (workplace.folder / "config/datasets.yaml").write_text("tiny: {path: data/none}\n")
    code, _, err = run(capsys, "prepare", "tiny")
    assert code == 2
    (line,) = err.splitlines()
    assert "data/none" in line
    assert "train/<class>/" in line


def test_data_shows_what_is_prepared_and_what_training_sees(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    code, out, _ = run(capsys, "data", "tiny")
    assert code == 0
    assert "tiny: 3 classes" in out
    assert out.endswith("Samples as the recipe tiny augments them: results/figures/datasets/tiny.png\n")
    assert (workplace.results / "figures/datasets/tiny.png").exists()
    (workplace.folder / "config/tiny.yaml").unlink()
    assert "name a --recipe" in run(capsys, "data", "tiny")[1]
    assert run(capsys, "data", "tiny", "--recipe", "tiny", "--output", "out.png")[0] == 0
    assert (workplace.folder / "out.png").exists()


@pytest.mark.slow
def test_every_stage_runs_by_hand(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    experiment, hand = "config/tiny.yaml", ("--threads", "1", "--workers", "0")
    for name, seeds in (("big", (0,)), ("small", (0, 1)), ("taught", (0, 1))):
        for seed in seeds:
            assert run(capsys, "train", experiment, name, "--seed", seed, *hand)[0] == 0
            assert run(capsys, "evaluate", experiment, name, "--seed", seed, *hand)[0] == 0
        assert run(capsys, "profile", experiment, name, "--threads", "1")[0] == 0
    assert run(capsys, "tabulate", experiment)[0] == 0
    assert run(capsys, "plot", experiment)[0] == 0
    table = (workplace.results / "tables/tiny.md").read_text()
    for name in ("big", "small", "taught"):
        assert name in table
    assert "±" in table
    assert list((workplace.results / "figures/tiny").glob("*.svg"))


def test_a_full_gpu_gets_one_line_and_exit_code_2(workplace, monkeypatch, capsys):
    import torch

    def full(*arguments):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1.00 GiB "
            "is free. Including non-PyTorch memory, this process has 78 GiB memory in use. Of the allocated memory ..."
        )

    monkeypatch.setattr("distillery.training.run.fit", full)
    code, _, err = run(capsys, "train", workplace.experiment, "big", "--results", workplace.results, "--workers", 0)
    (line,) = [line for line in err.splitlines() if "memory" in line]
    assert code == 2
    assert line.startswith("distillery: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
    assert "1.00 GiB is free; give `train` a --device-batch" in line
    assert "Traceback" not in err


def test_other_errors_of_the_runtime_are_no_full_gpu(workplace, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("out of memory, it says")

    monkeypatch.setattr("distillery.training.run.fit", broken)
    with pytest.raises(RuntimeError):
        main(["train", str(workplace.experiment), "big", "--results", str(workplace.results), "--workers", "0"])


@pytest.mark.slow
def test_schema_writes_a_file_for_each_kind_of_configuration(tmp_path, capsys):
    assert run(capsys, "schema", "--output", tmp_path)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "datasets.schema.json",
        "experiment.schema.json",
        "recipe.schema.json",
    ]
    for path in tmp_path.iterdir():
        jsonschema.Draft202012Validator.check_schema(json.loads(path.read_text()))


@pytest.mark.slow
def test_the_configuration_and_the_command_line_need_no_torch():
    """Snakemake reads the configuration in every job of a cluster."""
    code = (
        "import sys, distillery.cli, distillery.experiment, distillery.models.registry; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_a_small_network_is_trained_and_measured_without_the_libraries_that_take_seconds_to_import(workplace):
    for command in ("train", "evaluate", "profile"):
        workers = () if command == "profile" else ("--workers", "1")
        arguments = [command, workplace.experiment, "small", *workers, "--results", workplace.results]
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "distillery", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=True,
        )
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "torch" in imported
        assert sorted(imported & HEAVY) == []


@pytest.mark.slow
def test_a_second_check_of_the_same_networks_needs_no_torch(workplace, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [sys.executable, "-X", "importtime", "-m", "distillery", "check", str(workplace.experiment)]
    said = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    first, second = ({line.rpartition("|")[2].strip() for line in each.stderr.splitlines()} for each in said)
    assert "torch" in first
    assert sorted(second & (HEAVY | {"torch"})) == []
    assert said[0].stdout == said[1].stdout


def test_check_refuses_weights_that_are_absent_or_something_else_and_teachers_of_another_size(workplace, capsys):
    line = "weights: 'WEIGHTS', preprocess: {size: 8}}\n  tables:"
    workplace.edit(
        "  tables:", f"    taken: {{model: cifar_resnet8, {line}".replace("WEIGHTS", str(workplace.folder / "w"))
    )
    command = ["check", str(workplace.experiment)]
    for content, expected in ((None, "w: no such file"), ("<html>", "w: cannot be read: it is a web page")):
        if content is not None:
            (workplace.folder / "w").write_text(content)
        with pytest.raises(SystemExit) as end:
            main(command)
        assert end.value.code == 2
        assert expected in capsys.readouterr().err
    workplace.edit("    taken:", "    unread:")
    (workplace.folder / "w").write_bytes(b"\x80\x02")
    workplace.edit("{model: cifar_resnet14, ", "{model: vit_tiny_patch16_224, model_args: {depth: 1}, ")
    with pytest.raises(SystemExit):
        main(command)
    assert "big.model 'vit_tiny_patch16_224' cannot take images of 8 x 8 pixels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{model: cifar_resnet8, recipe: tiny, labels: 100}", "tiny.runs.more.labels: 100 of 36 training images"),
        ("{model: cifar_resnet8, recipe: tiny, labels: 0.001}", "more.labels: 0.001 of 36 training images would be 0"),
        (
            "{model: cifar_resnet8, recipe: tiny, labels: 0, labelled_share: 0.5, teacher: big, objective: {kd: {}}}",
            "config/tiny.yaml: tiny.runs.more.labelled_share: 0.5 has no effect with `labels: 0`",
        ),
        ("{model: resnet10t, weights: w.pth, classes: none.txt}", "tiny.runs.more.classes: none.txt cannot be read"),
        ("{model: resnet10t, weights: w.pth, classes: gap.txt}", "tiny.runs.more.classes: gap.txt:2: is empty"),
        (
            "{model: vit_tiny_patch16_224, weights: w.pth, classes: none, preprocess: {size: 225}}",
            "tiny.runs.more.model 'vit_tiny_patch16_224' cannot take images of 225 x 225 pixels",
        ),
        (
            "{model: vit_tiny_patch16_224, weights: w.pth, classes: none, model_args: {img_size: 40}, "
            "preprocess: {size: 40}}",
            "(preprocess.size): its patches of 16 pixels would leave 8 of them out; give 32 or 48",
        ),
        (
            "{model: cifar_resnet8, recipe: tiny, labels: {list: gap.txt}}",
            "labels: gap.txt:1: 'ape' is no training image with a label; write its path, as 'train/ape/000.png'",
        ),
    ],
)
def test_check_refuses_what_would_fail_or_be_wrong_later(workplace, capsys, monkeypatch, line, said):
    monkeypatch.chdir(workplace.folder)
    torch.save({"some": torch.zeros(1)}, "w.pth")
    Path("gap.txt").write_text("ape\n\nbee\n")
    workplace.edit("  tables:", f"    more: {line}\n  tables:")
    code, _, err = run(capsys, "check", "config/tiny.yaml")
    assert code == 2
    assert said in err
    assert err.startswith("distillery: config/tiny.yaml: tiny.runs.more.")
    assert err.count("\n") == 1


def test_a_rehearsal_by_hand_lies_beside_the_real_results(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    before = {path: path.read_bytes() for path in workplace.folder.rglob("*") if path.is_file()}
    code, _, err = run(capsys, "train", "config/tiny.yaml", "small", "--rehearsal", "--workers", "0")
    assert (code, err.count("distillery prepare tiny --rehearsal")) == (2, 1)
    assert run(capsys, "prepare", "tiny", "--rehearsal", "--workers", "1")[0] == 0
    code, _, err = run(capsys, "evaluate", "config/tiny.yaml", "small", "--rehearsal")
    assert "first make it with: distillery train config/tiny.yaml small --seed 0 --rehearsal" in err
    assert run(capsys, "train", "config/tiny.yaml", "small", "--rehearsal", "--workers", "0", "--measure")[0] == 0
    assert "small   seed 0  trained" in run(capsys, "status", "config/tiny.yaml", "--rehearsal")[1]
    said = run(capsys, "why", "results/tables/tiny/methods.md", "--rehearsal")[1]
    assert "results/rehearsal/results/tiny/small/seed0: up to date" in said
    assert (
        "results/tiny/small/seed0: not made yet"
        in run(capsys, "why", "tiny/small", "--rehearsal", "--results", "results")[1]
    )
    after = {path: path.read_bytes() for path in before}
    assert after == before
    new = {path.relative_to(workplace.folder).parts[:2] for path in workplace.folder.rglob("*") if path.is_file()}
    assert new - {path.relative_to(workplace.folder).parts[:2] for path in before} == {("results", "rehearsal")}


def test_what_the_system_refuses_is_one_line_with_its_path(workplace, capsys):
    results = workplace.folder / "file"
    results.write_text("")
    with pytest.raises(SystemExit) as end:
        main(["prepare", "tiny", "--config-dir", str(workplace.experiment.parent), "--results", str(results)])
    assert end.value.code == 2
    assert f"distillery: {results}" in (said := capsys.readouterr().err.splitlines()[-1])
    assert "Not a directory" in said or "File exists" in said


def test_the_end_of_a_worker_is_one_line(workplace, capsys, monkeypatch):
    def end(*_):
        raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")

    monkeypatch.setattr("distillery.training.run.make_run", end)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(workplace.experiment), "small", "--results", str(workplace.results)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a process that reads images has ended (DataLoader worker (pid 3) is killed by signal: Killed)" in line
    assert "--shm-size" in line


@pytest.mark.slow
def test_check_forecasts_banks_and_answer_records_them(workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace.folder)
    workplace.edit("teacher: big,", "teacher: {run: big, answers: bank}, crops: 2,")
    workplace.make("big")
    code, out, _ = run(capsys, "check", "config/tiny.yaml")
    assert code == 0
    forecast = out.splitlines()[-1]
    assert "of big, for taught/seed0, taught/seed1: 2 views of 36 images, 12 bytes an image" in forecast
    assert "the teacher answers 72 images, live it would answer 128" in forecast
    code, out, _ = run(capsys, "answer", "config/tiny.yaml", "big", "--workers", "0", "--threads", "1")
    assert code == 0
    assert "big's answers: view 2 of 2: 36 images" in out
    assert len(list((workplace.results / "tiny/big/seed0/bank").glob("*/*.npy"))) == 2
    for arguments, message in (
        (("small",), "no run says teacher: {run: small, answers: bank}"),
        (("bigg",), "no run 'bigg'; did you mean 'big'"),
        (("big", "--address", "beef"), "--address: big has no bank beef; valid: "),
    ):
        code, _, err = run(capsys, "answer", "config/tiny.yaml", *arguments)
        assert code == 2
        assert message in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "typed", "expected"),
    [
        ("bash", ("tr",), {"train"}),
        ("bash", ("train", "config/tiny.yaml", "s"), {"small"}),
        ("bash", ("train", "config/none.yaml", "s"), set()),
        ("zsh", ("prepare", "t"), {"tiny"}),
        ("fish", ("train", "config/tiny.yaml", "b"), {"big"}),
    ],
)
def test_a_shell_completes_commands_runs_and_data_sets(workplace, shell, typed, expected):
    words = ["distillery", *typed]
    asked = {"_DISTILLERY_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(typed))}
    asked |= {"_TYPER_COMPLETE_ARGS": " ".join(words), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    command = [sys.executable, "-m", "distillery"]
    done = subprocess.run(command, cwd=workplace.folder, env=os.environ | asked, capture_output=True, text=True)
    assert done.stderr == ""
    assert set(re.findall(r"\b(?:train|small|tiny|taught|big)\b", done.stdout.partition("Train a")[0])) == expected


def test_what_programs_read_is_json(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace.folder)
    code, out, _ = run(capsys, "check", "config/tiny.yaml", "--json")
    assert code == 0
    checked = json.loads(out)
    digests = {line["run"]: line["digest"] for line in checked["runs"] if line["seed"] == 0}
    assert set(digests) == {"big", "small", "taught"}
    code, out, _ = run(capsys, "why", "tiny/big", "--json")
    (finding,) = json.loads(out)
    assert finding == {
        "folder": "results/tiny/big/seed0",
        "state": "not made yet",
        "digest": digests["big"],
        "reasons": [],
    }
    code, out, _ = run(capsys, "verify", "config/tiny.yaml", "--json")
    assert code == 0
    assert json.loads(out)["faults"] == []
    shard = next((workplace.results / "datasets/tiny").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, err = run(capsys, "verify", "config/tiny.yaml", "--json")
    assert (code, err) == (2, "")
    assert "make it again with" in json.loads(out)["faults"][0]
