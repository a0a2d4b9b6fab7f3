"""Records that survive what others do to a run's folder."""

import shutil

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
