"""Show a workflow's progress: a line a finished job, the end of a failed job's log, on a terminal what runs now.

Snakemake finds this package by its name: ``--logger distillery``, for which workflow/profiles/default asks. Snakemake's
own log file in .snakemake/log/ stays complete.
"""

import re
import sys
from logging import LogRecord
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

EPOCH = re.compile(r"epoch \d+/\d+")
FAILURE = re.compile(r"distillery: (?!warning: ).+")  # the line with which a command ends, also behind a rank
LOG_LINES = 15  # of a failed job
LOG_BYTES = 2**15  # read from the end of a log

# What Snakemake says besides its events, and readers do not need; that a command failed is said again with its log.
NOISE = re.compile(
    r"host: |Building DAG |Using shell: |Provided (cores|remote nodes|resources): |Rules claiming more threads |"
    r"Conda environments: |Singularity containers: |Select jobs to execute|Execute \d+ jobs|Complete log\(s\): |"
    r"Assuming unrestricted shared filesystem|RuleException:\nCalledProcessError "
)


class LogHandler(LogHandlerBase):
    """Writes to the stream that Snakemake would write to; a dry run looks as Snakemake has it."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False  # Snakemake's own obeys --quiet
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        """Open the console."""
        stream = sys.stdout if self.common_settings.stdout else sys.stderr
        self.console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.jobs: dict[int, LogRecord] = {}  # those that run
        self.total = self.done = 0
        self.live = Live(get_renderable=self._now, console=self.console, refresh_per_second=2, transient=True)

    def emit(self, record: LogRecord) -> None:
        """Show a record."""
        try:
            text = self.format(record) if self.common_settings.dryrun else self._describe(record)
            if text:
                self.console.print(text)
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.live.stop()
        super().close()

    def _describe(self, record: LogRecord) -> str:
        event, fields = getattr(record, "event", None), record.__dict__
        if event == LogEvent.RUN_INFO and not self.total:
            self.total = fields["stats"]["total"]
            if self.console.is_terminal:
                self.live.start()
            return f"Jobs: {self.total}. You may stop with Ctrl-C at any time; the same command continues from there."
        if event == LogEvent.JOB_INFO:
            self.jobs[fields["jobid"]] = record
        elif event == LogEvent.JOB_FINISHED and fields["job_id"] in self.jobs:
            job = self.jobs.pop(fields["job_id"])
            self.done += 1
            count = f"{self.done:>{len(str(self.total))}} of {self.total}"
            return f"{count}   {_message(job):<48} {record.created - job.created:4.0f} s"
        elif event == LogEvent.JOB_ERROR and fields["jobid"] in self.jobs:
            lines = [f"\nFailed: {_message(self.jobs.pop(fields['jobid']))}. {fields['rule_msg'] or ''}".rstrip()]
            for log in fields["log"]:
                said = _end(log).splitlines()
                # It may stand before much that other programs say.
                lines += [match[0] for line in said if (match := FAILURE.search(line))][-1:]
                if not said:
                    lines.append(f"{log} is empty.")
                elif said == lines[-1:]:
                    lines.append(f"{log} has nothing else.")
                else:
                    lines += [f"{log} ends with:", *said[-LOG_LINES:]]
            return "\n".join(lines if fields["log"] else [*lines, str(fields["shellcmd"]).strip()])
        elif event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR):
            return self.format(record)
        elif event in (None, LogEvent.ERROR) and not NOISE.match(record.getMessage()):
            return self.format(record).strip()
        return ""

    def _now(self) -> Text:
        """What runs, for a training with its epoch."""
        jobs = [_message(job) + _epoch(job) for job in list(self.jobs.values())]
        return Text(f"now: {', '.join(jobs)}" if jobs else "", no_wrap=True, overflow="ellipsis")


def _message(job: LogRecord) -> str:
    fields = job.__dict__
    return str(fields["rule_msg"] or fields["rule_name"])


def _epoch(job: LogRecord) -> str:
    epochs = [epoch for log in job.__dict__["log"] for epoch in EPOCH.findall(_end(log))]
    return f" ({epochs[-1]})" if epochs else ""


def _end(log: str) -> str:
    path = Path(log)
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode(errors="replace")
