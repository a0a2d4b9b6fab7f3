"""Read what Snakemake says and tell it shortly: a line a job, and on a terminal a last line about what goes on now."""

import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

STARTED = re.compile(r"Job (\d+): (.+)")
FINISHED = re.compile(r"Finished jobid: (\d+) ")
TOTAL = re.compile(r"total +(\d+)")
ASKED = re.compile(r"all +1$")  # the rule that only asks for the others
FAILED = re.compile(r"Error in rule ")
FAILED_JOB = re.compile(r" +jobid: (\d+)")
FAILED_LOG = re.compile(r" +log: (\S+)")
TRAINING = re.compile(r"train (\S+), seed (\d+)")
EPOCH = re.compile(r"epoch \d+/\d+")
LOG_LINES = 15


@dataclass
class Job:
    """A job that runs."""

    message: str
    began: float = field(default_factory=time.monotonic)

    def now(self) -> str:
        """What it is at: for a training also the epoch, which its log tells."""
        training = TRAINING.match(self.message)
        epochs = EPOCH.findall(_read(Path("logs", training[1], f"seed{training[2]}", "train.log"))) if training else []
        return f"{self.message} ({epochs[-1]})" if epochs else self.message


class Progress:
    """What is done and what is being done, as far as Snakemake's lines tell."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.running: dict[str, Job] = {}
        self.failures: list[tuple[str, Path]] = []  # a job's message and its log
        self.reading_failure = ""
        self.total = self.done = 0
        self.screen = threading.Lock()
        self.live = sys.stdout.isatty()
        if self.live:
            threading.Thread(target=self._keep_drawing, daemon=True).start()

    def read(self, line: str) -> None:
        """Take in a line."""
        self.lines.append(line)
        if match := STARTED.match(line):
            with self.screen:
                self.running[match[1]] = Job(match[2])
        elif match := FINISHED.match(line):
            self._finish(match[1])
        elif (match := TOTAL.match(line)) and not self.total:
            self.total = int(match[1]) - any(map(ASKED.match, self.lines))
            self._print(f"{self.total} steps. You may stop with Ctrl-C at any time; the next `make demo` continues.")
        elif FAILED.match(line):
            self.reading_failure = line
        elif self.reading_failure and (match := FAILED_JOB.match(line)):
            self.reading_failure = self.running[match[1]].message if match[1] in self.running else f"job {match[1]}"
        elif self.reading_failure and (match := FAILED_LOG.match(line)):
            self.failures.append((self.reading_failure, Path(match[1])))
            self.reading_failure = ""

    def end(self) -> None:
        """Stop drawing."""
        with self.screen:
            self.running.clear()
            self._write("")

    def explain(self) -> None:
        """Say why it failed: the ends of the failed jobs' logs, or else what Snakemake said after its greeting."""
        for message, log in self.failures:
            print(f"\nFailed: {message}. {log} ends with:")
            print("\n".join(f"    {line}" for line in _read(log).splitlines()[-LOG_LINES:]))
        if not self.failures:
            starts = [number for number, line in enumerate(self.lines) if line.startswith("Config MD5")]
            said = self.lines[starts[0] + 1 if starts else 0 :]
            print("\n".join(line for line in said if not line.startswith("Using ")).strip())

    def _finish(self, number: str) -> None:
        with self.screen:
            job = self.running.pop(number, None)
        if job is not None:
            self.done += 1
            count = f"{self.done:>{len(str(self.total))}} of {self.total}"
            self._print(f"{count}   {job.message:<48} {time.monotonic() - job.began:4.0f} s")

    def _print(self, text: str) -> None:
        with self.screen:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        print(f"\r\x1b[K{text}" if self.live else text, end="", flush=True)

    def _keep_drawing(self) -> None:
        while True:
            time.sleep(0.5)
            with self.screen:
                now = ", ".join(job.now() for job in self.running.values())
                if now:
                    self._write(f"now: {now}"[: shutil.get_terminal_size().columns - 1])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
