"""Trackers: what they are told, that none can stop a training, and the real libraries, offline, where there are any."""

import csv
import json
import os
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from distillery import tracking
from distillery.cli import main
from distillery.errors import UserError
from distillery.tracking import TRACKERS, chosen_trackers


class Recorder:
    """A tracker that writes down what it is told; a process has one list."""

    told: list = []  # noqa: RUF012

    def __init__(self, tracked):
        self.told.append(("begin", tracked))

    def __getattr__(self, what):
        return lambda *arguments: self.told.append((what, *arguments))


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "told", [])
    monkeypatch.setitem(TRACKERS, "wandb", Recorder)
    return Recorder.told


@pytest.mark.parametrize(
    ("given", "environment", "found"),
    [
        ("", None, ()),
        ("", "wandb,mlflow", ("wandb", "mlflow")),
        ("trackio", "wandb", ("trackio",)),
        (" wandb , tensorboard, wandb", None, ("wandb",)),
        ("tensorboard", "wandb", ()),
    ],
)
def test_an_option_or_the_environment_chooses_them(monkeypatch, given, environment, found):
    monkeypatch.delenv(tracking.VARIABLE, raising=False)
    if environment is not None:
        monkeypatch.setenv(tracking.VARIABLE, environment)
    assert chosen_trackers(given) == found


@pytest.mark.parametrize(
    ("given", "said"), [("wanb", "--track: no tracker 'wanb'"), ("", "DISTILLERY_TRACK: no tracker")]
)
def test_an_unknown_one_is_refused_before_anything_is_trained(monkeypatch, given, said):
    monkeypatch.setenv(tracking.VARIABLE, "neptune")
    with pytest.raises(UserError, match=f"{said}.*valid: wandb, mlflow, trackio, tensorboard"):
        chosen_trackers(given)


@pytest.mark.slow
def test_a_run_tells_what_it_is_its_curves_and_its_end(workplace, recorder):
    workplace.make("big")
    folder = workplace.make("taught", track=("wandb",))
    (_, tracked), *points, last = recorder
    assert (tracked.project, tracked.group, tracked.name) == ("tiny", "taught", "taught/seed0")
    assert tracked.key.startswith("tiny-taught-seed0-")
    assert (tracked.settings["recipe.optimizer.lr"], tracked.settings["teacher"]) == (0.05, "big")
    assert tracked.settings["objective.kd.temperature"] == 2.0
    assert last == ("end", True)
    rows = list(csv.DictReader((folder / "history.csv").open()))
    epochs = [point for what, point, _ in points if what == "log" and "epoch" in point]
    assert [point["val/top1"] for point in epochs] == [float(row["val_top1"]) for row in rows]
    assert all("speed/images_per_second" in point for point in epochs)


@pytest.mark.slow
def test_watching_changes_nothing(workplace, recorder):
    names = ("weights.safetensors", "history.csv")
    alone, watched = workplace.make("small"), workplace.make("small", results="watched", track=("wandb",))
    assert recorder
    assert [sha256((alone / name).read_bytes()).digest() for name in names] == [
        sha256((watched / name).read_bytes()).digest() for name in names
    ]
    digests = [json.loads((folder / "run.json").read_text())["digest"] for folder in (alone, watched)]
    assert digests[0] == digests[1]


class Broken(Recorder):
    def log(self, *arguments):
        raise ConnectionError("no route\nto host")


class Leaving(Recorder):
    def __init__(self, tracked):
        sys.exit("log in first")


class Hanging(Recorder):
    def end(self, whole):
        time.sleep(60)


def missing(tracked):
    import no_such_library  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tracker", "said"),
    [
        (Broken, "ConnectionError: no route to host; going on without it"),
        (Leaving, "SystemExit: log in first; going on without it"),
        (Hanging, "does not answer; its last points may be missing"),
        (missing, "No module named 'no_such_library'; pip install 'distillery[trackers]'; going on without it"),
    ],
)
def test_one_that_fails_costs_a_line_and_no_training(workplace, monkeypatch, capsys, recorder, tracker, said):
    monkeypatch.setitem(TRACKERS, "mlflow", tracker)
    monkeypatch.setattr(tracking, "END_SECONDS", 0.3)
    folder = workplace.make("small", track=("mlflow", "wandb"))
    assert (folder / "run.json").exists()
    warnings = [line for line in capsys.readouterr().err.splitlines() if "track mlflow" in line]
    assert warnings == [f"warning: track mlflow: {said}"]
    assert recorder[-1] == ("end", True)  # the other one saw it all


def test_a_stopped_run_ends_unfinished_and_goes_on_under_the_same_key(workplace, recorder, stop_after, monkeypatch):
    from distillery.cluster.signals import Stopped

    stop_after(3)
    with pytest.raises(Stopped):
        workplace.make("small", track=("wandb",))
    assert recorder[-1] == ("end", False)
    key = recorder[0][1].key
    monkeypatch.undo()
    monkeypatch.setitem(TRACKERS, "wandb", Recorder)
    workplace.make("small", track=("wandb",))
    begun = [told[1].key for told in Recorder.told if told[0] == "begin"]
    assert begun[-1] == key
    assert Recorder.told[-1] == ("end", True)


def test_a_page_tells_its_verdicts_and_its_figures(tmp_path, recorder):
    from distillery.experiment import load_experiment
    from distillery.paths import figure_folder, table_folder
    from distillery.reporting.observed import show_figures, show_tables

    experiment = load_experiment(tracking.Path(__file__).parents[1] / "config" / "digits.yaml")
    table_folder(tmp_path).mkdir(parents=True)
    (table_folder(tmp_path) / "digits.csv").write_text("run,metric,mean,verdict\nkd,top1,98.5,reproduced\nkd,nll,,\n")
    (table_folder(tmp_path) / "digits.html").write_text("<p>")
    figures = figure_folder(tmp_path, "digits")
    figures.mkdir(parents=True)
    (figures / "gains.png").write_bytes(b"")
    show_tables(experiment, tmp_path, ["wandb"])
    show_figures(experiment, tmp_path, ["wandb"])
    assert ("note", {"kd/top1/mean": 98.5, "kd/top1/verdict": "reproduced"}) in recorder
    assert ("table", "tables", ["run", "metric", "mean", "verdict"]) in [told[:3] for told in recorder]
    assert ("picture", "gains", figures / "gains.png") in recorder
    assert len({told[1].key for told in recorder if told[0] == "begin"}) == 1
    before = len(recorder)
    show_tables(experiment, tmp_path, [])
    assert len(recorder) == before


@pytest.mark.slow
def test_tensorboards_hparams_are_the_runs_settings(workplace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(workplace.make("small") / "tensorboard"))
    events.Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    settings = metadata.parse_session_start_info_plugin_data(content).hparams
    assert settings["recipe.optimizer.lr"].number_value == 0.05
    assert settings["model"].string_value == "cifar_resnet8"
    assert events.Scalars("val/top1")


def test_the_command_line_refuses_an_unknown_tracker_in_one_line(workplace, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", str(workplace.experiment), "small", "--track", "tensorbord"])
    assert end.value.code == 2
    assert "--track: no tracker 'tensorbord'" in capsys.readouterr().err


# --- the real libraries, offline -------------------------------------------------------------------------------------


def train(workplace, tracker, **environment):
    """Train as a user does, in a process; what it said."""
    command = [sys.executable, "-m", "distillery", "train", str(workplace.experiment), "small", "--workers", "0"]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [*command, "--results", str(workplace.results), "--track", tracker],
        cwd=workplace.folder,
        env=kept | {"HOME": str(workplace.folder), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: track" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def top1s(workplace):
    rows = csv.DictReader((workplace.results / "tiny" / "small" / "seed0" / "history.csv").open())
    return [float(row["val_top1"]) for row in rows]


@pytest.mark.slow
def test_wandb_keeps_a_run_offline(workplace):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'distillery[trackers]'")
    train(workplace, "wandb", WANDB_MODE="offline")
    (stored,) = (workplace.folder / "wandb").glob("offline-run-*/run-tiny-small-seed0-*.wandb")
    content = stored.read_bytes()
    for text in (b"val/top1", b"small/seed0", b"recipe"):
        assert text in content


@pytest.mark.slow
def test_mlflow_keeps_params_curves_and_groups_and_continues_a_run(workplace, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'distillery[trackers]'")
    address = f"sqlite:///{workplace.folder}/own.db"
    train(workplace, "mlflow", MLFLOW_TRACKING_URI=address)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    client = mlflow.MlflowClient(address)
    experiment = client.get_experiment_by_name("tiny")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.data.tags["group"], run.info.status) == ("small/seed0", "small", "FINISHED")
    assert run.data.params["recipe.optimizer.lr"] == "0.05"
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val/top1")] == top1s(workplace)
    folder = workplace.results / "tiny" / "small" / "seed0"
    (folder / "run.json").unlink()
    train(workplace, "mlflow", MLFLOW_TRACKING_URI=address)
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.slow
def test_mlflows_own_database_takes_runs_that_start_together(workplace):
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'distillery[trackers]'")
    import sqlite3
    from concurrent.futures import ThreadPoolExecutor

    def track(number):
        script = (
            "import sys\nfrom distillery.tracking import Tracked, Trackers\n"
            "name = sys.argv[1]\ntrackers = Trackers(['mlflow'], Tracked('toy', 'run', name, name, {'a': 1}))\n"
            "trackers.tell('log', {'x': 1.0}, 1)\ntrackers.end()\n"
        )
        command = [sys.executable, "-c", script, f"run-{number}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        return subprocess.run(command, cwd=workplace.folder, env=environment, capture_output=True, text=True).stderr

    with ThreadPoolExecutor(3) as pool:
        said = list(pool.map(track, range(3)))
    assert not any("warning: track" in each for each in said), said
    with sqlite3.connect(workplace.folder / "mlflow.db") as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (3,)


@pytest.mark.slow
def test_trackio_keeps_a_run(workplace):
    pytest.importorskip("trackio", reason="trackio is not installed: pip install 'distillery[trackers]'")
    train(workplace, "trackio", TRACKIO_DIR=str(workplace.folder / "trackio"))
    (stored,) = (workplace.folder / "trackio").glob("tiny*.db")
    import sqlite3

    with sqlite3.connect(stored) as database:
        names = database.execute("SELECT DISTINCT run_name FROM metrics").fetchall()
    assert [name[0].rpartition("-")[0] for name in names] == ["tiny-small-seed0"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRACKERS))
def test_each_takes_tables_pictures_and_facts(name, tmp_path, monkeypatch):
    pytest.importorskip(name, reason=f"{name} is not installed: pip install 'distillery[trackers]'")
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "gains.png")
    (tmp_path / "page.html").write_text("<p>tables</p>")
    script = (
        "from pathlib import Path\nfrom distillery.tracking import Tracked, Trackers\n"
        f"trackers = Trackers(['{name}'], Tracked('toy', 'tables', 'tables', 'toy-tables', {{'experiment': 'toy'}}))\n"
        "trackers.tell('note', {'kd/top1/mean': 98.5, 'kd/top1/verdict': 'reproduced'})\n"
        "trackers.tell('table', 'tables', ['run', 'mean'], [['kd', '98.5']], Path('page.html'))\n"
        "trackers.tell('picture', 'gains', Path('gains.png'))\ntrackers.end()\n"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    assert "warning" not in done.stderr, done.stderr
