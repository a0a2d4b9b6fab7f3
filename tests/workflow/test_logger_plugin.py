"""What a workflow says while it runs."""

import io
import logging
from types import SimpleNamespace

import pytest
from rich.console import Console
from snakemake.logging import DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_distillery import LogHandler


@pytest.fixture
def shown():
    """Turn records, each a time in seconds and its fields, into the text on the screen."""

    def show(*records, dryrun=False):
        handler = LogHandler(SimpleNamespace(stdout=False, dryrun=dryrun), None)
        handler.setFormatter(DefaultFormatter())
        screen = handler.console.file = io.StringIO()
        for created, fields in records:
            handler.handle(logging.makeLogRecord({"created": created, "levelno": logging.INFO, "msg": "", **fields}))
        handler.close()
        return screen.getvalue()

    return show


TRAINING = {
    "event": LogEvent.JOB_INFO,
    "jobid": 3,
    "rule_name": "train_student",
    "rule_msg": "train digits/resnet8, seed 0",
    "log": [],
    "reason": "Missing output files: weights",
}
FAILED = {"event": LogEvent.JOB_ERROR, "jobid": 3, "rule_name": "train_student"}


def test_a_finished_job_gets_a_line_with_its_number_message_and_time(shown):
    text = shown(
        (0, {"event": LogEvent.RUN_INFO, "stats": {"total": 12}}),
        (1, TRAINING),
        (2, {"event": LogEvent.SHELLCMD, "msg": "exec distillery train"}),
        (42, {"event": LogEvent.JOB_FINISHED, "job_id": 3}),
        (42, {"event": LogEvent.PROGRESS, "done": 1, "total": 12}),
    )
    assert text.splitlines() == [
        "Jobs: 12. You may stop with Ctrl-C at any time; the same command continues from there.",
        " 1 of 12   train digits/resnet8, seed 0                       41 s",
    ]


def test_a_failed_jobs_own_line_comes_first(shown, tmp_path):
    log = tmp_path / "train.log"
    said = ["distillery: warning: slow", "[rank0]: distillery: the loss is NaN", *["torchrun says much"] * 40]
    log.write_text("\n".join(said))
    lines = shown((1, TRAINING | {"log": [str(log)]}), (2, FAILED | {"log": [str(log)], "rule_msg": None})).strip()
    assert lines.splitlines()[1:3] == ["distillery: the loss is NaN", f"{log} ends with:"]


def test_a_failed_job_shows_the_end_of_its_log(shown, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("\n".join(f"line {number}" for number in range(5_000)))
    empty = tmp_path / "empty.log"
    logs = {"log": [str(empty), str(log)]}
    text = shown((1, TRAINING | logs), (2, FAILED | logs | {"rule_msg": "SLURM status is: 'TIMEOUT'"}))
    lines = text.strip().splitlines()
    assert lines[0] == "Failed: train digits/resnet8, seed 0. SLURM status is: 'TIMEOUT'"
    assert lines[1:3] == [f"{empty} is empty.", f"{log} ends with:"]
    assert lines[3:] == [f"line {number}" for number in range(4_985, 5_000)]


def test_a_failed_job_without_a_log_shows_its_command(shown):
    text = shown((1, TRAINING), (2, FAILED | {"rule_msg": None, "log": [], "shellcmd": " exec distillery train "}))
    assert text.strip().splitlines() == ["Failed: train digits/resnet8, seed 0.", "exec distillery train"]


def test_what_is_neither_event_nor_noise_is_passed_on(shown):
    text = shown(
        (0, {"msg": "Building DAG of jobs..."}),
        (0, {"msg": "Job 3 has been submitted with SLURM jobid 12"}),
        (0, {"msg": "RuleException:\nCalledProcessError in file x.smk", "event": LogEvent.ERROR}),
        (0, {"msg": "WorkflowError:\nno such rule", "event": LogEvent.ERROR}),
    )
    assert text.splitlines() == ["Job 3 has been submitted with SLURM jobid 12", "WorkflowError:", "no such rule"]


def test_a_dry_run_looks_as_snakemake_has_it(shown):
    assert "Job 3: train digits/resnet8, seed 0\nReason: Missing output files" in shown((1, TRAINING), dryrun=True)


def test_a_terminal_shows_what_runs_and_its_epoch(tmp_path):
    log = tmp_path / "train.log"
    log.write_text("epoch 1/90: loss 2\nepoch 2/90: loss 1\n")
    handler = LogHandler(SimpleNamespace(stdout=False, dryrun=False), None)
    handler.handle(logging.makeLogRecord({"created": 0, **TRAINING, "log": [str(log)]}))
    screen = Console(file=io.StringIO(), width=60)
    with screen.capture() as captured:
        screen.print(handler.live.get_renderable())
    assert captured.get() == "now: train digits/resnet8, seed 0 (epoch 2/90)\n"
