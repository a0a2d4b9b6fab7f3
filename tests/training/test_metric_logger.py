"""Records that survive what others do to a run's folder."""

import shutil
import time
from contextlib import suppress

import pytest

from distillery.training.checkpoint import TrainState
from distillery.training.metric_logger import MetricLogger

pytestmark = pytest.mark.slow  # TensorBoard's import


def test_records_removed_by_a_refused_second_job_are_whole_at_the_end(tmp_path):
    metric_logger = MetricLogger(tmp_path / "run", active=True)
    metric_logger.begin("run", 4, 1, TrainState())
    for epoch in range(4):
        metric_logger.step(8, dict)
        names = ("lr", "train_loss", "train_top1", "val_loss", "val_top1", "val_top5")
        metric_logger.epoch({"epoch": epoch + 1} | dict.fromkeys(names, float(epoch)))
        metric_logger.flush()
        if epoch == 2:
            shutil.rmtree(tmp_path / "run")
    metric_logger.end()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("val/top1")] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 5


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


ROW = {
    "epoch": 1,
    "lr": 0.1,
    "train_loss": 1.0,
    "train_top1": 50.0,
    "val_loss": 1.0,
    "val_top1": 50.0,
    "val_top5": 90.0,
}


def test_images_a_second_are_those_of_training_steps(tmp_path, capsys):
    """Validation, calibration batches and saving have seconds of their own; a wait for data is a step's."""
    logger = MetricLogger(tmp_path / "run", active=True)
    logger.begin("run", 1, 1, TrainState())
    with logger.timed("calibration"):
        time.sleep(0.3)
    with logger.timed("data_wait"):
        time.sleep(0.1)
    logger.step(100, dict)
    with logger.timed("validation"):
        time.sleep(0.4)
    logger.epoch(ROW)
    logger.end()
    found = scalars(tmp_path / "run")
    assert 400 < found["speed/images_per_second"][0][1] <= 1000
    assert found["speed/data_wait_percent"][0][1] > 50
    assert found["seconds/validation"][0][1] == pytest.approx(0.4, abs=0.1)
    assert found["seconds/calibration"][0][1] == pytest.approx(0.3, abs=0.1)
    assert found["seconds/training"][0][1] < 0.25
    assert "validation" not in (tmp_path / "run" / "history.csv").read_text()


def test_a_long_epoch_is_heard_of_before_its_end(tmp_path, capsys, monkeypatch):
    """A point in TensorBoard every so many steps, and a line a minute where there is no terminal."""
    logger = MetricLogger(tmp_path / "run", active=True)
    logger.begin("run", 2, 120, TrainState())
    means = {"loss": 0.5, "top1": 75.0}
    for _ in range(60):
        logger.step(8, lambda: means)
    assert capsys.readouterr().err == ""
    logger.said -= 61
    for _ in range(45):
        logger.step(8, lambda: means)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("run: step 61/240, epoch 1/2, loss 0.500, top-1 75.0, ")
    logger.end()
    assert scalars(tmp_path / "run")["step/loss"] == [(50, 0.5), (100, 0.5)]


def test_points_within_an_epoch_go_on_when_another_removes_their_folder(tmp_path):
    """TensorBoard's thread fails at its next write, and says so at the next call but one."""
    logger = MetricLogger(tmp_path / "run", active=True)
    logger.begin("run", 1, 200, TrainState())
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    for _ in range(100):
        logger.step(8, lambda: {"loss": 1.0, "top1": 50.0})
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    with suppress(FileNotFoundError):
        logger.writer.add_scalar("lost", 0.0, 0)
    time.sleep(0.2)
    for _ in range(100):
        logger.step(8, lambda: {"loss": 1.0, "top1": 50.0})

    def removed_in_between():
        raise FileNotFoundError

    logger.writer.flush = removed_in_between
    logger.flush()
    shutil.rmtree(tmp_path / "run" / "tensorboard")
    logger.epoch(ROW)
    logger.end()
    assert scalars(tmp_path / "run")["val/top1"] == [(1, 50.0)]
