"""The board: what `distillery status` makes of the files of runs in every state, whole or damaged."""

import json
import os
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from dataclasses import asdict, replace

import pytest

from distillery.cli import main
from distillery.cluster import run_lock
from distillery.paths import lock_path, log_folder, run_folder, work_folder
from distillery.reporting import status
from distillery.reporting.status import Line, board, read_status

MEMBER = "toy", "small", 1
EPOCH = "small/seed1: epoch {}/4, loss 0.5, top-1 70.00 train, 71.50 val, 900 img/s, data wait 1 %, ETA {}\n"


def finish(desk, run="small", seed=1, metrics=True):
    spec, folder = desk.experiment.spec(run, seed), run_folder(desk.results, "toy", run, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"x")
    record = {"digest": spec.digest, "spec": spec.ledger, "manifest_digest": "0"}
    (folder / "run.json").write_text(json.dumps(record))
    if metrics:
        desk.write_metrics(run, seed)
    return folder


def own(desk, **facts):
    """A lock of this process, or of the one that the facts say."""
    path = lock_path(desk.results, *MEMBER)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(run_lock._this_process(), **facts))))
    return path


def log(desk, text, age=3600.0, name="train.log"):
    path = log_folder(desk.results, *MEMBER) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    os.utime(path, (time.time() - age,) * 2)
    return path


def write_epochs(desk, count=2):
    desk.write_history("small", 1, [{"epoch": n + 1, "val_top1": 70 + n + 0.5} for n in range(count)])


def seen(desk) -> Line:
    (line,) = [line for line in read_status([desk.experiment], desk.results) if (line.run, line.seed) == ("small", 1)]
    return line


def test_nothing_is_known_of_a_run_that_has_not_begun(desk):
    assert seen(desk) == Line(*MEMBER, "not begun")


def test_a_finished_run_is_done_with_its_top1(desk):
    finish(desk)
    assert seen(desk) == Line(*MEMBER, "done", top1=90.0)


def test_a_network_that_was_not_measured_is_trained(desk):
    finish(desk, metrics=False)
    assert seen(desk).state == "trained"
    log(desk, "Traceback\ndistillery: disk full\n", age=-60, name="evaluate.log")
    assert (seen(desk).state, seen(desk).note) == ("failed", "not measured: disk full")


def test_results_of_another_configuration_or_of_other_images_are_stale(desk):
    folder = finish(desk)
    recipe = desk.folder / "config/recipes/toy.yaml"
    recipe.write_text(recipe.read_text().replace("lr: 0.05", "lr: 0.1"))
    assert (seen(desk).state, seen(desk).top1) == ("stale", 90.0)
    assert seen(desk).note.startswith("recipe.optimizer.lr: 0.05 -> 0.1")
    recipe.write_text(recipe.read_text().replace("lr: 0.1", "lr: 0.05"))
    assert seen(desk).state == "done"
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"manifest_digest": "1"}))
    assert seen(desk).note == "images of toy: 1 -> 0"


def test_a_running_run_shows_epoch_top1_rest_and_machine(desk):
    own(desk, slurm_job="77")
    assert seen(desk).detail.endswith("Slurm job 77, starting")
    write_epochs(desk)
    log(desk, EPOCH.format(1, "09:00") + EPOCH.format(2, "1:02:03") + "small/seed1: step 5/8, epoch 3/4\n", age=0)
    line = seen(desk)
    assert (line.state, line.epoch, line.epochs, line.top1, line.slurm_job) == ("running", 2, 4, 71.5, "77")
    assert line.eta_seconds == pytest.approx(3723, abs=30)
    assert line.detail.startswith("epoch 2/4, top-1 71.50, ETA 1:0")


def test_a_running_run_shows_its_gpu_and_one_that_waits_for_a_gpu_is_queued(desk):
    own(desk, device="GPU 3").unlink()
    log(desk, "waiting for a GPU: 1 of 4 wanted\n", age=0)
    assert (seen(desk).state, seen(desk).note) == ("queued", "waiting for a GPU: 1 of 4 wanted")
    own(desk, device="GPU 3")
    assert seen(desk).detail.split(", ")[1] == "GPU 3"
    assert seen(desk).state == "running"


def test_the_rest_is_not_taken_from_the_log_of_a_session_before(desk):
    own(desk)
    write_epochs(desk)
    log(desk, EPOCH.format(2, "02:03"))
    assert seen(desk).eta_seconds is None


def test_a_finished_run_that_is_made_again_does_not_show_its_old_epochs(desk):
    write_epochs(desk, 4)
    finish(desk)
    own(desk)
    assert (seen(desk).state, seen(desk).epoch, seen(desk).note) == ("running", None, "starting")


def test_an_owner_elsewhere_lives_while_his_heartbeat_is_fresh(desk):
    path = own(desk, machine="n7", process=1, started="1", slurm_job="12")
    assert (seen(desk).state, seen(desk).machine) == ("running", "n7")
    os.utime(path, (time.time() - 600,) * 2)
    assert (seen(desk).state, seen(desk).machine) == ("failed", "n7")


def test_a_process_that_died_here_failed(desk):
    own(desk, process=2**22 + 1)
    log(desk, EPOCH.format(3, "00:10"), age=0)
    line = seen(desk)
    assert (line.state, line.epoch, line.epochs) == ("failed", 3, 4)
    assert "ended without a word" in line.note


@pytest.mark.parametrize("before", ["", "[rank0]: "])
def test_a_failure_is_its_one_line_wherever_in_the_log_it_stands(desk, before):
    log(desk, EPOCH.format(1, "00:10") + f"{before}distillery: the loss is NaN\nmore\n" + "torchrun says much\n" * 40)
    assert seen(desk) == Line(*MEMBER, "failed", 1, 4, note="the loss is NaN")


def test_a_killed_job_shows_what_it_said_last(desk):
    log(desk, "bar 1\rbar 2\r\n\n")
    assert seen(desk).note == "ended without a word after: bar 2"


def test_a_saved_run_is_stopped(desk):
    log(desk, EPOCH.format(1, "00:10") + "distillery: SIGTERM: saved; the same command continues from here\n")
    assert (seen(desk).state, seen(desk).epoch) == ("stopped", 1)
    (log_folder(desk.results, *MEMBER) / "train.log").unlink()
    checkpoint = work_folder(desk.results, *MEMBER) / "1a-2b" / "checkpoint.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"x")
    assert seen(desk).state == "stopped"


def test_a_job_that_has_just_begun_to_write_its_log_is_starting(desk):
    log(desk, "", age=0)
    assert (seen(desk).state, seen(desk).note) == ("running", "starting")


def test_a_job_that_a_workflow_has_given_out_is_queued(desk):
    state, key = desk.folder / ".snakemake", b"results/toy/small/seed1/weights.safetensors"
    marker = state / "incomplete" / urlsafe_b64encode(key).decode()
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"external_jobid": "4711"}))
    log(desk, "distillery: this was yesterday\n")
    assert seen(desk).state == "failed"  # no workflow runs
    (state / "locks").mkdir()
    (state / "locks" / "0.output.lock").touch()
    assert seen(desk) == Line(*MEMBER, "queued", slurm_job="4711")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\x00\xff" * 99, b'{"a": ' * 9999, None])
@pytest.mark.parametrize("name", ["run.json", "metrics.json", "history.csv", "train.log", "lock", "manifest.json"])
def test_damaged_files_are_states_and_no_errors(desk, name, content):
    folder = finish(desk)
    where = {
        "train.log": log_folder(desk.results, *MEMBER),
        "lock": lock_path(desk.results, *MEMBER).parent,
        "manifest.json": desk.results / "datasets" / "toy",
    }
    if name in ("history.csv", "train.log"):
        (folder / "run.json").unlink()
        own(desk) if name == "history.csv" else None
    path = where.get(name, folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    line = seen(desk)
    assert line.state in {"run.json": {"damaged"}, "metrics.json": {"damaged"}, "lock": {"running", "done"}}.get(
        name, {"running", "done"}
    )
    assert all(character.isprintable() for character in line.detail)
    json.loads(status.as_data([line]))


def test_a_log_cannot_move_the_cursor(desk):
    log(desk, "distillery: \x1b[2J\x1b]0;title\x07 gone\n")
    assert "\x1b" not in board([seen(desk)])


def test_the_board_ends_with_counts_and_json_has_the_same(desk, monkeypatch, capsys):
    finish(desk)
    monkeypatch.chdir(desk.folder)
    with pytest.raises(SystemExit):
        main(["status"])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "toy"
    assert "  small     seed 1  done       top-1 90.00" in text.splitlines()
    assert text.splitlines()[-1] == "7 in all: 1 done, 6 not begun"
    with pytest.raises(SystemExit):
        main(["status", "config/toy.yaml", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"done": 1, "not begun": 6}
    assert [line["top1"] for line in data["runs"] if line["state"] == "done"] == [90.0]


def test_a_broken_experiment_does_not_hide_the_others(desk, monkeypatch, capsys):
    finish(desk)
    (desk.folder / "config/other.yaml").write_text("other: [")
    (desk.results / "other").mkdir()
    monkeypatch.chdir(desk.folder)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    said = capsys.readouterr()
    assert ended.value.code in (0, None)
    assert said.err.startswith("distillery: config/other.yaml:")
    assert "1 done" in said.out


def test_without_anything_begun_it_says_what_to_name(desk, monkeypatch, capsys):
    monkeypatch.chdir(desk.folder)
    with pytest.raises(SystemExit) as ended:
        main(["status"])
    assert ended.value.code == 2
    assert "no experiment of config has begun" in capsys.readouterr().err


def test_watching_ends_with_ctrl_c_and_leaves_out_what_is_not_remarkable(monkeypatch, capsys):
    lines = [Line("toy", "small", seed, "not begun") for seed in range(99)] + [Line("toy", "last", 0, "failed")]

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupt)
    status.watch_board(lambda: lines)
    shown = capsys.readouterr().out
    assert "failed" in shown
    assert "100 in all: 99 not begun, 1 failed" in shown
    assert shown.count("seed") < 30


@pytest.mark.slow
def test_the_board_imports_no_library_that_takes_a_second(desk):
    script = (
        "import sys\nfrom distillery.cli import main\n"
        "try:\n    main(['status', 'config/toy.yaml'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'pyarrow', 'rich.live'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], cwd=desk.folder, check=True, capture_output=True)
